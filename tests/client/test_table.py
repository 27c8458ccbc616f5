"""The books of all streams of a client: what is said of one stream, beside what is said of many."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidegate.client.table import StreamTable

BUFFER_MAX = 4


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 12))
def test_a_stream_has_room_where_a_block_with_one_row_of_it_has(
    start: int, answered: int, durable: int, then: int
) -> None:
    """Whatever was answered and stored, and wherever the stream began."""
    table = StreamTable(BUFFER_MAX)
    (stream,) = table.add_streams(1).tolist()
    table.start_steps[stream], table.answered[stream], table.durable_steps[stream] = start, answered, durable
    table.next_steps[stream] = then
    assert table.has_room(stream) == bool(table.room(np.array([stream])))
