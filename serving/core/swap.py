"""The state of a stream that moves from one version of its model to another.

A move changes the state and nothing else. The number of the last timestep, the remembered answers, the hashes of their
values and the ring of values are carried over. So a repeat of a timestep from before the move gets the answer that the
old version gave. `core.swap_policy` decides whether a stream moves.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tidegate.core.input_layout import InputLayout
from tidegate.core.model import Model
from tidegate.core.raw_ring import unpack_rows
from tidegate.core.slots import Slots
from tidegate.core.spec import Array, Arrays, Checkpoint, Spec

# What the content of a slot begins with: the number of the first timestep whose answer it remembers.
SINCE_BYTES = np.dtype(np.int64).itemsize


def raw_rows(checkpoint: Checkpoint, slots: Slots) -> Array:
    """The last timesteps of a stream as rows of `slots.layout`, in order: as many as its checkpoint has, perhaps none.

    `slots` are those of the version that made the checkpoint.
    """
    layout = slots.layout
    content = checkpoint.payload[slots.core_bytes(checkpoint.answers) :]
    if not content:
        return layout.zeros(0)
    _, rows = unpack_rows(content, layout.row_bytes, checkpoint.step)
    return np.ascontiguousarray(rows).view(layout.row_dtype)


def stream_inputs(checkpoint: Checkpoint, slots: Slots) -> Arrays:
    """The inputs that a stream began with, one array of its own shape each."""
    values = slots.read_stream_inputs(checkpoint.payload)
    return tuple(
        np.frombuffer(packed, part.dtype).reshape(part.shape)
        for packed, part in zip(values, slots.layout.stream, strict=True)
    )


def with_state(checkpoint: Checkpoint, old: Slots, new: Spec, state: Arrays) -> Checkpoint:
    """The checkpoint of a stream with the state of another version, one array of its own shape for each tensor.

    The versions must not differ; see `difference`. `old` are the slots of the version that made the checkpoint.
    """
    end_of_state = SINCE_BYTES + sum(tensor.initial.nbytes for tensor in old.spec.state)
    parts = [np.ascontiguousarray(part, tensor.dtype).tobytes() for part, tensor in zip(state, new.state, strict=True)]
    payload = checkpoint.payload
    return replace(checkpoint, model=new.id, payload=b"".join((payload[:SINCE_BYTES], *parts, payload[end_of_state:])))


def replay(model: Model, rows: Array, inputs: Arrays = ()) -> Arrays:
    """The state after the timesteps rows (streams, steps, ...), from the model's initial state.

    `inputs` are those that the streams began with, one array (streams, *shape) each. Returns one array (streams, *shape)
    for each state tensor. May run in any thread. Raises ModelFailed.
    """
    state = model.initial_state(len(rows))[: len(model.spec.state)]
    for step in range(rows.shape[1]):
        _, state, _ = advance(model, np.ascontiguousarray(rows[:, step]), state, inputs)
    return state


def advance(model: Model, x: Array, state: Arrays, inputs: Arrays = ()) -> tuple[Arrays, Arrays, npt.NDArray[np.bool_]]:
    """One timestep x (batch, ...), without the memory that `Model.step` shares: it may run in any thread.

    Returns the outputs, the next state, and (batch,) which rows were applied. A row that serving would refuse, because of
    its values or because its next state is not finite, keeps its state.

    Raises ModelFailed when the model fails on the whole batch.
    """
    layout = InputLayout(model.spec.inputs)
    usable: npt.NDArray[np.bool_] = ~layout.invalid(x, missing_allowed=model.spec.handles_missing)
    safe = x if usable.all() else np.where(usable[:, np.newaxis], x, x.dtype.type(0))
    outputs, next_state = model.step_apart(safe, (*state, *inputs))
    for part, tensor in zip(next_state, model.spec.state, strict=True):
        if tensor.is_checked:
            usable = usable & np.isfinite(part).reshape(len(x), -1).all(axis=1)
    if not usable.all():
        next_state = tuple(
            np.where(usable.reshape(-1, *[1] * (part.ndim - 1)), part, before)
            for part, before in zip(next_state, state, strict=True)
        )
    return outputs, next_state, usable
