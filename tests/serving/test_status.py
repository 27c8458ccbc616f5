"""Errors at the end of a call."""

from collections.abc import Callable
from typing import Any

import pytest

from tidegate.core import errors
from tidegate.rpc.status import ERROR_MESSAGE_BYTES_MAX, TABLE, abort, error_message
from tidegate.rpc.wire import encode_error

# Longer than any id or name may be, and of the characters that need the most bytes.
LONG = "\U0001f527" * 4096
NAMES = [LONG] * 200
MAKE: dict[type[errors.TidegateError], Callable[[], errors.TidegateError]] = {
    errors.WrongWidth: lambda: errors.WrongWidth(1, NAMES),
    errors.NotFinite: lambda: errors.NotFinite(LONG, float("inf"), LONG),
    errors.InvalidField: lambda: errors.InvalidField("stream_id", LONG),
    errors.StepGap: lambda: errors.StepGap(2**63, 2**63),
    errors.ValuesDiffer: lambda: errors.ValuesDiffer(2**63),
    errors.NoStepLeft: lambda: errors.NoStepLeft(2**63),
    errors.Overloaded: lambda: errors.Overloaded(1, 1),
    errors.StepsLimited: lambda: errors.StepsLimited(1.0, 1),
    errors.OpensLimited: lambda: errors.OpensLimited(1.0, 1),
    errors.ParkedAgain: lambda: errors.ParkedAgain(LONG, 1),
    errors.StoreBehind: lambda: errors.StoreBehind(1.0, 1),
    errors.ModelNotFound: lambda: errors.ModelNotFound(LONG, LONG, NAMES),
    errors.DefaultNotChanged: lambda: errors.DefaultNotChanged(LONG, LONG),
    errors.ModelNotNamed: lambda: errors.ModelNotNamed(NAMES),
    errors.StreamNotFound: lambda: errors.StreamNotFound(LONG),
    errors.StreamExists: lambda: errors.StreamExists(LONG),
    errors.ModelMismatch: lambda: errors.ModelMismatch(LONG, LONG, LONG),
    errors.TooManyStreams: lambda: errors.TooManyStreams("live", 1, 1),
    errors.TakenOver: lambda: errors.TakenOver(LONG, 2**63),
    errors.StreamExpired: lambda: errors.StreamExpired(LONG, 2**63 - 2),
    errors.StateLost: lambda: errors.StateLost(LONG, 2**63, 2**63),
    errors.CheckpointBroken: lambda: errors.CheckpointBroken(LONG, LONG),
    errors.StoreUnavailable: lambda: errors.StoreUnavailable(LONG, LONG),
    errors.Stopping: errors.Stopping,
}


class Context:
    """Takes the status of a call."""

    async def abort_with_status(self, status: Any) -> None:
        """Keeps it, and ends the call as grpc does."""
        self.status = status
        raise RuntimeError("aborted")


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
async def test_the_status_of_every_error_fits_into_metadata(kind: type[errors.TidegateError]) -> None:
    """By default gRPC accepts 8 KB. Beyond that another code arrives, without the message."""
    context = Context()
    with pytest.raises(RuntimeError, match="aborted"):
        await abort(context, MAKE.get(kind, lambda: kind(LONG))())
    text = context.status.details.encode()
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in text)
    details = dict(context.status.trailing_metadata)["grpc-status-details-bin"]
    assert percent_encoded + len(details) * 4 / 3 + 200 < 8192
    assert text


def test_a_sentence_is_cut_between_characters() -> None:
    """The rest is text, and shows that it was cut."""
    cut = error_message(errors.WrongOrder("é" * ERROR_MESSAGE_BYTES_MAX))
    assert len(cut.encode()) <= ERROR_MESSAGE_BYTES_MAX
    assert set(cut) == {"é", "."}
    assert cut.endswith("...")


@pytest.mark.parametrize("error", [errors.StateLost("a", 4, 9), errors.StreamExpired("a", 4)])
def test_an_error_within_a_call_says_where_the_stream_is(error: errors.TidegateError) -> None:
    """As the status of a call does: a client that lost timesteps knows from where on to send again."""
    assert encode_error(error, of_timestep=False).next_step == 5
