"""Errors made from the status of a call."""

import grpc

from tidegate.client import ServerUnavailable
from tidegate.client.errors import status_error


def test_a_write_that_met_the_end_of_the_call_is_told_in_plain_words() -> None:
    """The library hides the status behind "Internal error from Core", which says nothing to a user. The call may be tried again."""
    error = status_error(grpc.StatusCode.INTERNAL, "Internal error from Core", None)
    assert isinstance(error, ServerUnavailable)
    assert str(error) == "the call ended while a message was being written"
