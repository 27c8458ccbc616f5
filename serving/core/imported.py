"""Checks a record that anybody may have written before a stream begins with it.

A store's records are ours; that they are whole is all that has to be checked. An imported one comes from a client, and its
checksum, which has no key, says nothing of who made it: what this model could never have written is refused here.
"""

import numpy as np

from serving.core.errors import InvalidField
from serving.core.slots import Slots
from serving.core.spec import STEP_MAX, Array, Checkpoint
from serving.core.stream_id import check_stream_id

FIELD = "checkpoint"
# The most answers that a server may be told to remember.
ANSWERS_MAX = 4096


def check_imported(checkpoint: Checkpoint, slots: Slots) -> None:
    """Checks that a row of these slots could have been packed so, and that its stream can go on.

    Raises:
        InvalidField: it could not, in the field `checkpoint`. Nothing was allocated by what the record says of itself.

    """
    # The name it had is given to the new stream where the request has no other.
    check_stream_id(checkpoint.key.stream_id, FIELD)
    if not 0 <= checkpoint.step < STEP_MAX:
        raise InvalidField(
            FIELD, f"it is at step {checkpoint.step}, expected 0 to {STEP_MAX - 1}, after which there is a number left"
        )
    if not 0 < checkpoint.answers <= ANSWERS_MAX:
        raise InvalidField(FIELD, f"it remembers {checkpoint.answers} answers, expected 1 to {ANSWERS_MAX}")
    got, expected = len(checkpoint.payload), slots.row_bytes(checkpoint.answers)
    if got != expected:
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
        _check_values(f"state '{tensor.name}'", values, finite=True)
        offset += values.nbytes
    for output in slots.spec.outputs:
        count = checkpoint.answers * int(np.prod(output.shape))
        values = np.frombuffer(checkpoint.payload, output.dtype, count, offset)
        # A graph may predict what is not finite: only its state may not be.
        _check_values(f"answers '{output.name}'", values, finite=False)
        offset += values.nbytes


def _check_values(what: str, values: Array, *, finite: bool) -> None:
    if values.dtype == np.bool_:
        if values.view(np.uint8).max(initial=0) > 1:
            raise InvalidField(FIELD, f"{what} has a byte {values.view(np.uint8).max()}, expected 0 or 1")
    elif finite and np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise InvalidField(FIELD, f"{what} has a value that is not finite, which no timestep leaves")
