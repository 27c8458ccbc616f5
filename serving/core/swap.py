"""The state of a stream that moves from one version of its model to another.

A move changes the state and nothing else. The number of the last timestep, the remembered answers, the hashes of their
values and the ring of values are carried over. So a repeat of a timestep from before the move gets the answer that the
old version gave. `core.swap_policy` decides whether a stream moves.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tidegate.core.engine import invalid_values
from tidegate.core.model import Model
from tidegate.core.raw_ring import unpack_rows
from tidegate.core.slots import Slots
from tidegate.core.spec import Arrays, Checkpoint, Floats, Spec

# What the content of a slot begins with: the number of the first timestep whose answer it remembers.
SINCE_BYTES = np.dtype(np.int64).itemsize


def raw_rows(checkpoint: Checkpoint, slots: Slots) -> Floats:
    """The last timesteps of a stream (steps, features), in order: as many as its checkpoint has, perhaps none.

    `slots` are those of the version that made the checkpoint.
    """
    features = len(slots.spec.features)
    content = checkpoint.payload[slots.core_bytes(checkpoint.answers) :]
    if not content:
        return np.empty((0, features), np.float32)
    _, rows = unpack_rows(content, 4 * features, checkpoint.step)
    return np.ascontiguousarray(rows).view("<f4").reshape(len(rows), features)


def with_state(checkpoint: Checkpoint, old: Slots, new: Spec, state: Arrays) -> Checkpoint:
    """The checkpoint of a stream with the state of another version, one array of its own shape for each tensor.

    The versions must not differ; see `difference`. `old` are the slots of the version that made the checkpoint.
    """
    end_of_state = SINCE_BYTES + sum(tensor.initial.nbytes for tensor in old.spec.state)
    parts = [np.ascontiguousarray(part, tensor.dtype).tobytes() for part, tensor in zip(state, new.state, strict=True)]
    payload = checkpoint.payload
    return replace(checkpoint, model=new.id, payload=b"".join((payload[:SINCE_BYTES], *parts, payload[end_of_state:])))


def replay(model: Model, rows: Floats) -> Arrays:
    """The state after the timesteps rows (streams, steps, features), from the model's initial state.

    Returns one array (streams, *shape) for each state tensor. May run in any thread. Raises ModelFailed.
    """
    state = model.initial_state(len(rows))
    for step in range(rows.shape[1]):
        _, state, _ = advance(model, np.ascontiguousarray(rows[:, step]), state)
    return state


def advance(model: Model, x: Floats, state: Arrays) -> tuple[Arrays, Arrays, npt.NDArray[np.bool_]]:
    """One timestep x (batch, features), without the memory that `Model.step` shares: it may run in any thread.

    Returns the outputs, the next state, and (batch,) which rows were applied. A row that serving would refuse, because of
    its values or because its next state is not finite, keeps its state.

    Raises ModelFailed when the model fails on the whole batch.
    """
    usable: npt.NDArray[np.bool_] = ~np.logical_or.reduce(invalid_values(model.spec, x), axis=1)
    safe = x if usable.all() else np.where(usable[:, np.newaxis], x, np.float32(0))
    outputs, next_state = model.step_apart(safe, state)
    for part in next_state:
        if np.issubdtype(part.dtype, np.floating):
            usable = usable & np.isfinite(part).reshape(len(x), -1).all(axis=1)
    if not usable.all():
        next_state = tuple(
            np.where(usable.reshape(-1, *[1] * (part.ndim - 1)), part, before)
            for part, before in zip(next_state, state, strict=True)
        )
    return outputs, next_state, usable
