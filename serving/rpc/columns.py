"""Converts between the columns of `PredictBlocks` messages and arrays.

A column is packed little-endian numbers in `bytes`: thousands of rows are read and written without a loop.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tidegate.core.errors import InvalidField, TidegateError
from tidegate.core.handle_table import HandleTable
from tidegate.core.input_layout import InputLayout
from tidegate.core.masks import any_true
from tidegate.core.named_inputs import Named, check_named, pack_rows
from tidegate.core.spec import STEP_MAX, Array, Ints, Timestep
from tidegate.core.swap_policy import Moved
from tidegate.rpc import wire
from tidegate.rpc.single_row import SingleRow, ready_lease
from tidegate.rpc.status import wire_status
from tidegate.rpc.varint import varint
from tidegate.v1 import tidegate_pb2 as pb

# A block with so many rows is 3 MB with eight features, and a tenth of a second of work for a small model.
ROWS_MAX = 65_536
HANDLE = np.dtype("<u4")
STEP = np.dtype("<u8")
VALUE = np.dtype("<f4")
# The dtype of the core for the same numbers. None of the allowed numbers is so large that it would become negative.
NUMBER = np.dtype("<i8")
# The tag of a length-delimited field: its number, and the wire type of bytes.
BLOCK, STEPS, OUTPUT, DURABLE_STEPS = (
    bytes([field << 3 | 2])
    for field in (
        pb.PredictBlocksResponse.BLOCK_FIELD_NUMBER,
        pb.PredictedBlock.STEPS_FIELD_NUMBER,
        pb.PredictedBlock.OUTPUTS_FIELD_NUMBER,
        pb.PredictedBlock.DURABLE_STEPS_FIELD_NUMBER,
    )
)
BLOCK_NUMBER_TAG = bytes([pb.PredictedBlock.BLOCK_FIELD_NUMBER << 3])


def decode_handles(message: pb.Block) -> Ints:
    """The handles of a block, one for each row.

    Raises:
        InvalidField: there are too many, or the last one is incomplete.

    """
    if len(message.handles) % HANDLE.itemsize:
        raise InvalidField("handles", f"got {len(message.handles)} bytes, expected 4 a row")
    handles = np.frombuffer(message.handles, HANDLE).astype(np.int64)
    if len(handles) > ROWS_MAX:
        raise InvalidField("handles", f"got {len(handles)} rows, expected at most {ROWS_MAX}; send several blocks")
    return handles


def decode_steps(message: pb.Block, rows: int) -> Ints:
    """The numbers of the timesteps; 0 where the server assigns them.

    Raises:
        InvalidField: there is not one for each handle, or one is out of range.

    """
    if not message.steps:
        return np.zeros(rows, np.int64)
    if len(message.steps) != rows * STEP.itemsize:
        raise InvalidField(
            "steps", f"got {len(message.steps)} bytes, expected {rows * STEP.itemsize}: 8 for each of {rows} rows"
        )
    steps = np.frombuffer(message.steps, STEP)
    if any_true(steps > STEP_MAX):
        raise InvalidField("steps", f"got {steps.max()}, expected at most {STEP_MAX}")
    return steps.view(NUMBER).astype(np.int64, copy=False)


def decode_rows(message: pb.Block, rows: int, layout: InputLayout) -> Array:
    """The rows, as `core.input_layout` says.

    Raises:
        InvalidField: there is not one value for each row and feature, or the inputs are not those of the model.

    """
    if not layout.plain:
        return pack_rows(layout, wire.decode_named(message.inputs), message.values, rows)
    if message.inputs:
        check_named(wire.decode_named(message.inputs), ())
    features = layout.row_bytes // VALUE.itemsize
    expected = rows * layout.row_bytes
    if len(message.values) != expected:
        raise InvalidField(
            "values",
            f"got {len(message.values)} bytes, expected {expected}: 4 for each of {features} features in {rows} rows",
        )
    return np.frombuffer(message.values, VALUE).reshape(rows, features)


class InputColumns:
    """Inputs of many rows, one after the other. Their bytes can be divided among the rows."""

    def __init__(self, inputs: Sequence[pb.InputValues], rows: int) -> None:
        self._columns = [(part.name, part.values, len(part.values) // max(1, rows)) for part in inputs]

    def row(self, row: int) -> Named:
        """Those of one row."""
        return [(name, packed[row * size : (row + 1) * size]) for name, packed, size in self._columns]


def decode_single_row(message: pb.Block, table: HandleTable) -> SingleRow | None:
    """The row of a block with a single row that is ready to run; None for any other block, also for a malformed one."""
    handles, steps = message.handles, message.steps  # each look at a field copies it
    if len(handles) != HANDLE.itemsize or len(steps) not in (0, STEP.itemsize):
        return None
    step = int.from_bytes(steps, "little")
    lease = ready_lease(table, int.from_bytes(handles, "little"), step)
    if lease is None:
        return None
    layout, values = lease.stream.slots.layout, message.values
    if not layout.plain:
        try:
            values = pack_rows(layout, wire.decode_named(message.inputs), values).tobytes()
        except InvalidField:
            return None
    elif len(values) != layout.row_bytes or message.inputs:
        return None
    return SingleRow(message.block, lease, Timestep(step, values))


def encode_predicted(
    number: int,
    steps: Ints,
    outputs: Sequence[Array],
    durable_steps: Ints,
    duplicates: npt.NDArray[np.bool_],
    forgotten: npt.NDArray[np.bool_],
    errors: wire.RowErrors,
) -> bytes:
    """The answer to a block in which some rows were not applied, or were duplicates."""
    block = pb.PredictedBlock(
        block=number,
        steps=steps.astype(STEP, copy=False).tobytes(),
        outputs=[part.tobytes() for part in outputs],
        durable_steps=durable_steps.astype(STEP, copy=False).tobytes(),
        duplicate_rows=np.flatnonzero(duplicates & ~forgotten).tolist(),
        forgotten_rows=np.flatnonzero(forgotten).tolist(),
    )
    return errors.append_to(pb.PredictBlocksResponse.BLOCK_FIELD_NUMBER, block)


def encode_applied(number: int, steps: bytes, outputs: Sequence[bytes], durable_steps: bytes) -> bytes:
    """The answer to a block in which every row was applied, from packed columns.

    Encodes the same message as `encode_predicted`.
    """
    content = BLOCK_NUMBER_TAG + varint(number) if number else b""
    parts = [content, STEPS, varint(len(steps)), steps]
    for part in outputs:
        parts += (OUTPUT, varint(len(part)), part)
    parts += (DURABLE_STEPS, varint(len(durable_steps)), durable_steps)
    return b"".join((BLOCK, varint(sum(map(len, parts))), *parts))


def pack_steps(steps: Ints) -> bytes:
    """Step numbers as a column."""
    return steps.astype(NUMBER, copy=False).tobytes()


def pack_step(step: int) -> bytes:
    """One step number as a column."""
    return step.to_bytes(STEP.itemsize, "little")


def encode_refused(number: int, error: TidegateError) -> bytes:
    """The answer to a block that was refused as a whole."""
    refused = pb.PredictedBlock(block=number, refused=wire.encode_error(error, of_timestep=False))
    return pb.PredictBlocksResponse(block=refused).SerializeToString()


def encode_durable(handles: Ints, durable_steps: Ints) -> bytes:
    """A notification of durable steps."""
    return pb.PredictBlocksResponse(
        durable=pb.DurableStreams(
            handles=handles.astype(HANDLE).tobytes(), durable_steps=durable_steps.astype(STEP, copy=False).tobytes()
        )
    ).SerializeToString()


def encode_ended(handles: Sequence[int], why: TidegateError) -> bytes:
    """A notification that the call no longer holds some streams."""
    ended = pb.EndedStreams(handles=handles, error=wire.encode_error(why, of_timestep=False))
    return pb.PredictBlocksResponse(ended=ended).SerializeToString()


def encode_moved(handles: Sequence[int], model: pb.Model, moved: Moved) -> bytes:
    """A notification that streams have moved to another version."""
    message = pb.MovedStreams(handles=handles, model=model, new_state=wire.NEW_STATES[moved])
    return pb.PredictBlocksResponse(moved=message).SerializeToString()


def by_reason(
    endings: Iterable[tuple[int, TidegateError]],
) -> Mapping[pb.Error.Reason, list[tuple[int, TidegateError]]]:
    """Groups handles that have ended by the reason."""
    groups: dict[pb.Error.Reason, list[tuple[int, TidegateError]]] = {}
    for handle, why in endings:
        groups.setdefault(wire_status(why, of_timestep=False).reason, []).append((handle, why))
    return groups
