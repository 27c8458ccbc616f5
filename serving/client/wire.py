"""Converts messages of a client to and from those of `PredictBlocks`, in columns. Only refused rows are handled one by one."""

from collections.abc import Iterable

import numpy as np

from tidegate.client.errors import StreamLost
from tidegate.client.message import Message, SingleRowMessage
from tidegate.client.results import Answers, Bools
from tidegate.client.types import Model
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Array, Ints, Output
from tidegate.v1 import tidegate_pb2 as pb

# The limit of the protocol.
ROWS_MAX = 65_536
# Longer messages are read no faster. A server that does not report its limit reads 4 MiB; errors need some room in an answer.
MESSAGE_BYTES_MAX = 3_000_000
# The bytes of a block without its rows: its number and the lengths of its columns.
BLOCK_OVERHEAD_BYTES = 64
# The bytes of a row without its values: a handle and a number.
ROW_OVERHEAD_BYTES = 12
# The bytes of an answer without its outputs: two numbers, and its place among the duplicates.
ANSWER_OVERHEAD_BYTES = 21

OPEN_KINDS = {pb.Opened.KIND_NEW: "new", pb.Opened.KIND_RESUMED: "resumed", pb.Opened.KIND_TAKEN_OVER: "taken_over"}


def rows_max(model: Model, message_bytes_max: int) -> int:
    """How many rows a message may have, so that neither it nor its answer is too large.

    Args:
        model: the model of the streams.
        message_bytes_max: the largest request that the server reads, in bytes; 0 when it does not report it.

    """
    asked = ROW_OVERHEAD_BYTES + model.layout.row_bytes
    answered = ANSWER_OVERHEAD_BYTES + sum(
        output.dtype.itemsize * int(np.prod(output.shape)) for output in model.outputs
    )
    request_bytes = min(MESSAGE_BYTES_MAX, (message_bytes_max or MESSAGE_BYTES_MAX) - BLOCK_OVERHEAD_BYTES)
    return max(1, min(ROWS_MAX, request_bytes // asked, MESSAGE_BYTES_MAX // answered))


def encode_block(message: Message, handles: Ints) -> pb.PredictBlocksRequest:
    """Encodes a message. `handles` has the handle of each row."""
    values, inputs = encode_rows(message.buffer.layout, message.values)
    return pb.PredictBlocksRequest(
        block=pb.Block(
            block=message.number,
            handles=handles.astype("<u4").tobytes(),
            steps=message.steps.tobytes(),
            values=values,
            inputs=inputs,
        )
    )


def encode_single_row(message: SingleRowMessage, handle: int) -> pb.PredictBlocksRequest:
    """Encodes a message with one timestep."""
    if not message.buffer.layout.plain:
        return encode_block(message, np.array([handle]))
    return pb.PredictBlocksRequest(
        block=pb.Block(
            block=message.number,
            handles=handle.to_bytes(4, "little"),
            steps=message.step.to_bytes(8, "little"),
            values=message.packed,
        )
    )


def encode_rows(layout: InputLayout, x: Array) -> tuple[bytes, list[pb.InputValues]]:
    """The fields `values` and `inputs` of rows."""
    if layout.plain:
        return x.tobytes(), []
    values = layout.column(x, layout.values.name).tobytes() if layout.values else b""
    return values, encode_named([(part.name, layout.column(x, part.name).tobytes()) for part in layout.named])


def encode_named(inputs: Iterable[tuple[str, bytes]]) -> list[pb.InputValues]:
    """Inputs by name."""
    return [pb.InputValues(name=name, values=packed) for name, packed in inputs]


def decode_answers(message: Message, outputs: tuple[Output, ...], block: pb.PredictedBlock) -> Answers:
    """Decodes the answers to a message. Raises StreamLost when they do not fit it."""
    rows = len(message.steps)
    plain = not (block.duplicate_rows or block.forgotten_rows or block.errors)
    try:
        nothing = np.zeros(rows, np.bool_)
        return Answers(
            np.frombuffer(block.steps, "<i8").reshape(rows),
            [
                np.frombuffer(packed, output.dtype).reshape(rows, *output.shape)
                for output, packed in zip(outputs, block.outputs, strict=True)
            ],
            np.frombuffer(block.durable_steps, "<i8").reshape(rows),
            nothing if plain else _mark(rows, block.duplicate_rows),
            nothing if plain else _mark(rows, block.forgotten_rows),
            nothing if plain else _mark(rows, [error.row for error in block.errors]),
            plain,
        )
    except (ValueError, IndexError) as error:
        raise StreamLost(
            f"the server's answer to block {message.number} does not fit its {rows} rows: {error}", "WRONG_ORDER"
        ) from error


def decode_durable(message: pb.DurableStreams) -> tuple[Ints, Ints]:
    """Decodes handles and their durable steps. Raises StreamLost when the columns differ in length."""
    try:
        handles = np.frombuffer(message.handles, "<u4").astype(np.int64)
        return handles, np.frombuffer(message.durable_steps, "<i8").reshape(len(handles))
    except ValueError as error:
        raise StreamLost(f"the server's durable steps and handles differ in number: {error}", "WRONG_ORDER") from error


def _mark(rows: int, places: Iterable[int]) -> Bools:
    """A boolean column that is True at these places."""
    mark = np.zeros(rows, np.bool_)
    mark[np.fromiter(places, np.int64)] = True
    return mark
