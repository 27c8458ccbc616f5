"""The table of a client's streams: the room of one stream, compared with that of many."""

from itertools import product

import numpy as np

from tidegate.client.table import StreamTable

BUFFER_MAX = 4


def test_a_stream_has_room_where_a_block_with_one_row_of_it_has() -> None:
    """Whatever was answered and stored, and wherever the stream began: both sides of each limit are tried."""
    table = StreamTable(BUFFER_MAX)
    (stream,) = table.add_streams(1).tolist()
    for start, answered, durable, following in product(range(1, 7), range(7), range(7), range(1, 12)):
        table.start_steps[stream], table.answered[stream], table.durable_steps[stream] = start, answered, durable
        table.next_steps[stream] = following
        case = start, answered, durable, following
        assert table.has_room(stream) == bool(table.room(np.array([stream]))), case
