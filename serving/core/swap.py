"""How a stream moves from one version of its model to another, decided and computed without a clock or a store.

    pin      the stream stays on its version until it is closed for good
    rewarm   the last timesteps that it got are replayed into the new version, from that version's initial state
    reset    it continues from the new version's initial state

A move changes the state and nothing else. The number of the last timestep, the remembered answers, the hashes of their
values and the ring of values are carried over. So a repeat of a timestep from before the move gets the answer that the
old version gave. That is possible only between versions with the same features and outputs; see `difference`.
"""

from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.core.model import Model
from tidegate.core.raw_ring import unpack_rows
from tidegate.core.slots import Slots
from tidegate.core.spec import Arrays, Checkpoint, Floats, Spec

# What the content of a slot begins with: the number of the first timestep whose answer it remembers.
SINCE_BYTES = np.dtype(np.int64).itemsize


class SwapPolicy(Enum):
    """What happens to streams on an old version of a model."""

    PIN = "pin"
    REWARM = "rewarm"
    RESET = "reset"


class Moved(Enum):
    """How a stream came to another version."""

    NOT = ""
    REWARMED = "rewarmed"
    RESET = "reset"


class MoveRequest(NamedTuple):
    """What decides whether a stream moves, beside its versions.

    `step` is its last timestep, `answered` the last one whose answer its client has. `allowed` tells whether the client
    accepts a move.
    """

    policy: SwapPolicy
    allowed: bool
    step: int
    answered: int = 0


def may_move(old: Spec, new: Spec, request: MoveRequest) -> bool:
    """Whether a stream moves from one version to another now.

    Timesteps that the client has answers to, and that the server has lost in a crash, must run again on the version
    that answered them: another version would give other answers to them.
    """
    return (
        request.policy is not SwapPolicy.PIN
        and request.allowed
        and request.step >= request.answered
        and old.fingerprint != new.fingerprint
        and not difference(old, new)
    )


def difference(old: Spec, new: Spec) -> str:
    """Why no stream can move between two versions; empty when it can."""
    if old.name != new.name:
        return f"{old.name} and {new.name} are different models"
    was, now = ([(feature.name, feature.unit) for feature in spec.features] for spec in (old, new))
    if was != now:
        return f"features: {old.title} has {_names(was)}, {new.title} has {_names(now)}"
    outputs = [[(part.name, part.dtype, part.shape) for part in spec.outputs] for spec in (old, new)]
    if outputs[0] != outputs[1]:
        names = [", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in parts) for parts in outputs]
        return f"outputs: {old.title} has {names[0]}; {new.title} has {names[1]}"
    if old.handles_missing and not new.handles_missing:
        return f"missing values: {old.title} takes them, {new.title} does not"
    return ""


def _names(features: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} [{unit}]" if unit else name for name, unit in features)


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
    usable: npt.NDArray[np.bool_]
    usable = np.isfinite(x).all(axis=1) if not model.spec.handles_missing else ~np.isinf(x).any(axis=1)
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
