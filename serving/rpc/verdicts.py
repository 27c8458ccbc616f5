"""Why rows of a block were refused, as it is told."""

import numpy as np

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.block import Block
from serving.core.engine import Verdict
from serving.core.errors import FellAsleep, InvalidField, TidegateError
from serving.core.handles import Handles
from serving.rpc import columns, wire
from serving.rpc.slices import Slices

# Nothing is waited for: a stream that fell asleep is woken.
RETRY_AFTER_MS = 1


async def told_errors(
    held: Handles, message: pb.Block, block: Block, failed: dict[int, TidegateError], unsaved: dict[int, TidegateError]
) -> wire.RowErrors:
    """Why rows were refused: by the engine, because their streams `failed` to wake, or because they are `unsaved`."""
    errors = wire.RowErrors(pb.PredictedBlock.ERRORS_FIELD_NUMBER, of_timesteps=True)
    refused = block.verdicts > Verdict.DUPLICATE
    refused[list(unsaved)] = True
    rows = np.flatnonzero(refused)
    if not rows.size:
        return errors
    sent = columns.decode_steps(message, len(block))[rows].tolist()
    following = block.next_steps(rows).tolist()
    alike: dict[int, TidegateError] = {}  # by verdict, for rows without a sentence: one error for all of them
    slices = Slices()
    for row, step, next_step in zip(rows.tolist(), sent, following, strict=True):
        verdict = int(block.verdicts[row])
        if row in unsaved:
            error = unsaved[row]
        elif verdict == Verdict.NOT_HELD:
            error = _why_not_held(held, int(block.handles[row]), failed)
        elif errors.telling or verdict not in alike:
            error = alike[verdict] = block.refusal(row)
        else:
            error = alike[verdict]
        errors.add(row, error, step, next_step)
        await slices.rest()
    return errors


def _why_not_held(held: Handles, handle: int, failed: dict[int, TidegateError]) -> TidegateError:
    """Why a row was refused whose stream was not live, or not the call's own."""
    lease = held[handle]
    if lease is None:
        return InvalidField("handles", f"got {handle}, which was closed on this call; open it again")
    if lease.ended is not None:
        return lease.ended
    # Neither ended nor awake: it has fallen asleep each time that it was woken.
    return failed.get(handle) or FellAsleep(lease.stream.key.stream_id, RETRY_AFTER_MS)
