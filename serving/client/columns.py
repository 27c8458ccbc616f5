"""Blocks as they travel: a parcel into its message, and the message that answers it into columns.

Nothing here goes row by row, but for rows that were refused.
"""

from collections.abc import Iterable

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client.errors import StreamLost
from serving.client.nouns import Model
from serving.client.parcel import Answers, Bools, Parcel
from serving.core.spec import Ints

# What the protocol allows.
ROWS_MAX = 65_536
# Longer messages are read no faster, and a server that does not say how much it reads takes 4 MiB; some of an answer goes to refusals.
MESSAGE_BYTES_MAX = 3_000_000
# What a block has beside its rows: its number and the lengths of its columns.
BLOCK_BYTES = 64
# What a row has beside its values: a handle and a number.
ROW_BYTES = 12
# What an answer has beside its outputs: two numbers, and its place among the duplicates.
ANSWER_BYTES = 21


def rows_max(model: Model, message_bytes_max: int) -> int:
    """How many rows a message may have, so that it and its answer are not too large.

    Args:
        model: what they are for.
        message_bytes_max: the largest request that the server reads, in bytes; 0 when it does not say.

    """
    asked = ROW_BYTES + 4 * len(model.features)
    answered = ANSWER_BYTES + sum(output.dtype.itemsize * int(np.prod(output.shape)) for output in model.outputs)
    request_bytes = min(MESSAGE_BYTES_MAX, (message_bytes_max or MESSAGE_BYTES_MAX) - BLOCK_BYTES)
    return max(1, min(ROWS_MAX, request_bytes // asked, MESSAGE_BYTES_MAX // answered))


def encode_block(parcel: Parcel, handles: Ints) -> pb.Block:
    """A parcel, whose streams go by these handles."""
    return pb.Block(
        block=parcel.number,
        handles=handles.astype("<u4").tobytes(),
        steps=parcel.steps.astype("<u8").tobytes(),
        values=parcel.values.tobytes(),
    )


def decode_answers(parcel: Parcel, model: Model, message: pb.PredictedBlock) -> Answers:
    """The answers to a parcel. Raises StreamLost when they do not fit it."""
    rows = len(parcel.steps)
    try:
        return Answers(
            np.frombuffer(message.steps, "<i8").reshape(rows),
            [
                np.frombuffer(packed, output.dtype).reshape(rows, *output.shape)
                for output, packed in zip(model.outputs, message.outputs, strict=True)
            ],
            np.frombuffer(message.durable_steps, "<i8").reshape(rows),
            _mark(rows, message.duplicate_rows),
            _mark(rows, message.forgotten_rows),
            _mark(rows, [error.row for error in message.errors]),
        )
    except (ValueError, IndexError) as error:
        raise StreamLost(
            f"the server's answer to block {parcel.number} does not fit its {rows} rows: {error}", "WRONG_ORDER"
        ) from error


def decode_durable(message: pb.DurableStreams) -> tuple[Ints, Ints]:
    """Handles, and what is durable of each. Raises StreamLost when the columns do not fit each other."""
    try:
        handles = np.frombuffer(message.handles, "<u4").astype(np.int64)
        return handles, np.frombuffer(message.durable_steps, "<i8").reshape(len(handles))
    except ValueError as error:
        raise StreamLost(
            f"the server told of what is durable in columns that do not fit: {error}", "WRONG_ORDER"
        ) from error


def _mark(rows: int, places: Iterable[int]) -> Bools:
    """A column that is True at these places."""
    mark = np.zeros(rows, np.bool_)
    mark[np.fromiter(places, np.int64)] = True
    return mark
