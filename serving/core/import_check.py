"""Checks an imported checkpoint before a stream starts from it.

The server wrote the checkpoints of its own store, so a checksum is enough for them. An imported one comes from a
client, and its checksum has no key: it does not tell who made it. So this module refuses what the model could never
have written.
"""

import numpy as np

from tidegate.core.errors import InvalidField
from tidegate.core.slots import Slots
from tidegate.core.spec import STEP_MAX, Array, Checkpoint
from tidegate.core.stream_id import check_stream_id

FIELD = "checkpoint"
# The largest number of remembered answers that a server can be configured with.
ANSWERS_MAX = 4096


def check_import(checkpoint: Checkpoint, slots: Slots) -> None:
    """Checks that a slot of this model could have produced the checkpoint, and that its stream can continue.

    Raises:
        InvalidField: it could not; the field is `checkpoint`. No memory was allocated by the sizes that the record
            claims.

    """
    # The new stream gets this id if the request names no other.
    check_stream_id(checkpoint.key.stream_id, FIELD)
    if not 0 <= checkpoint.step < STEP_MAX:
        raise InvalidField(
            FIELD, f"it is at step {checkpoint.step}, expected 0 to {STEP_MAX - 1}, so that a next number is left"
        )
    if not 0 < checkpoint.answers <= ANSWERS_MAX:
        raise InvalidField(FIELD, f"it remembers {checkpoint.answers} answers, expected 1 to {ANSWERS_MAX}")
    got, expected = len(checkpoint.payload), slots.row_bytes(checkpoint.answers)
    if not slots.fits(checkpoint.payload, checkpoint.answers):
        raise InvalidField(
            FIELD,
            f"its state has {got} bytes, expected {expected} under {slots.spec.title} with {checkpoint.answers} answers",
        )
    since = int(np.frombuffer(checkpoint.payload, np.int64, 1)[0])
    if not 1 <= since <= checkpoint.step + 1:
        raise InvalidField(
            FIELD,
            f"it remembers answers from step {since} on, expected 1 to {checkpoint.step + 1} at step {checkpoint.step}",
        )
    offset = np.dtype(np.int64).itemsize
    for tensor in slots.spec.state:
        values = np.frombuffer(checkpoint.payload, tensor.dtype, tensor.initial.size, offset)
        # A window has values of timesteps, and NaN where one was missing.
        finite = tensor.finite or not (tensor.next_name or slots.spec.handles_missing)
        _check_values(f"state '{tensor.name}'", values, finite=finite)
        offset += values.nbytes
    for part, packed in zip(slots.layout.stream, slots.read_stream_inputs(checkpoint.payload), strict=True):
        _check_values(f"input '{part.name}'", np.frombuffer(packed, part.dtype), finite=True)
        offset += len(packed)
    for output in slots.spec.outputs:
        count = checkpoint.answers * int(np.prod(output.shape))
        values = np.frombuffer(checkpoint.payload, output.dtype, count, offset)
        # A graph may predict a value that is not finite; only the state must be finite.
        _check_values(f"answers '{output.name}'", values, finite=False)
        offset += values.nbytes


def _check_values(what: str, values: Array, *, finite: bool) -> None:
    if values.dtype == np.bool_:
        if values.view(np.uint8).max(initial=0) > 1:
            raise InvalidField(FIELD, f"{what} has a byte {values.view(np.uint8).max()}, expected 0 or 1")
    elif finite and np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise InvalidField(FIELD, f"{what} has a value that is not finite, which no timestep leaves")
