"""The errors of refused rows in the answer to a block."""

import numpy as np

from tidegate.core.block import Block
from tidegate.core.engine import RowStatus
from tidegate.core.errors import InvalidField, ParkedAgain, TidegateError
from tidegate.core.handle_table import HandleTable
from tidegate.core.mixed_block import MixedBlock
from tidegate.rpc import columns, wire
from tidegate.rpc.time_slice import TimeSlice
from tidegate.v1 import tidegate_pb2 as pb

# No wait is needed: a parked stream is woken.
RETRY_AFTER_MS = 1


async def collect_row_errors(
    table: HandleTable,
    message: pb.Block,
    block: Block | MixedBlock,
    failed: dict[int, TidegateError],
    unsaved: dict[int, TidegateError],
) -> wire.RowErrors:
    """The errors of rows that the engine refused, and of those whose streams could not be woken or stored.

    `failed` has the errors of streams that could not be woken, by handle; `unsaved` those of rows that are not stored,
    by row.
    """
    errors = wire.RowErrors(pb.PredictedBlock.ERRORS_FIELD_NUMBER, of_timesteps=True)
    refused = block.statuses > RowStatus.DUPLICATE
    refused[list(unsaved)] = True
    rows = np.flatnonzero(refused)
    if not rows.size:
        return errors
    sent = columns.decode_steps(message, len(block))[rows].tolist()
    next_steps = block.next_steps(rows).tolist()
    by_status: dict[int, TidegateError] = {}  # by status, for rows without a message: they share one error
    time_slice = TimeSlice()
    for row, step, next_step in zip(rows.tolist(), sent, next_steps, strict=True):
        status = int(block.statuses[row])
        if row in unsaved:
            error = unsaved[row]
        elif status == RowStatus.NOT_HELD:
            error = _why_not_held(table, int(block.handles[row]), failed)
        elif errors.has_messages_left or status not in by_status:
            error = by_status[status] = block.refusal_error(row)
        else:
            error = by_status[status]
        errors.add(row, error, step, next_step)
        await time_slice.maybe_yield()
    return errors


def _why_not_held(table: HandleTable, handle: int, failed: dict[int, TidegateError]) -> TidegateError:
    """The error for a row whose stream was not live, or no longer held by the call."""
    lease = table[handle]
    if lease is None:
        return InvalidField("handles", f"got {handle}, which was closed on this call; open it again")
    if lease.ended is not None:
        return lease.ended
    # Neither ended nor awake: it was parked again each time that it was woken.
    return failed.get(handle) or ParkedAgain(lease.stream.key.stream_id, RETRY_AFTER_MS)
