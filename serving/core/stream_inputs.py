"""The inputs that a stream begins with: a speaker's vector, for example. They are stored with its state.

From the first timestep on they do not change. A client that resumes the stream may give them again or leave them out.
"""

import numpy as np

from tidegate.core.errors import InvalidField, join_names
from tidegate.core.input_layout import InputLayout, StreamInputs
from tidegate.core.named_inputs import FIELD, Named, check_named, describe
from tidegate.core.payload import check_payload_size
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint, Key
from tidegate.core.streams import Phase, Stream


def decide_inputs(
    key: Key, slots: Slots, named: Named, stream: Stream | None, checkpoint: Checkpoint | None
) -> StreamInputs:
    """The inputs that a stream has from an open on.

    Args:
        key: that of the stream.
        slots: those of its model.
        named: what the open gives.
        stream: the stream, if it is in this process.
        checkpoint: what is stored of it.

    Raises:
        InvalidField: they are invalid; or the stream begins without them, or goes on with other values.
        CheckpointBroken: the checkpoint does not fit the model.

    """
    given = _check(named, slots.layout)
    if not slots.stream_inputs:
        return ()
    kept, step = None, 0
    if stream is not None and stream.phase is Phase.LIVE:
        kept, step = slots.get_stream_inputs(stream.slot), stream.step
    elif checkpoint is not None:
        check_payload_size(checkpoint, slots)
        kept, step = slots.read_stream_inputs(checkpoint.payload), checkpoint.step
    elif stream is not None:
        kept = stream.inputs
    if given is None:
        if kept is None:
            expected = f"expected {describe(slots.layout.stream)} with its open"
            raise InvalidField(FIELD, f"stream '{key.stream_id}' begins here, {expected}")
        return kept
    if kept is not None and step:
        _check_same(key, slots.layout, given, kept)
    return given


def _check(named: Named, layout: InputLayout) -> StreamInputs | None:
    """The inputs in the order of the layout; None when they are left out. Raises InvalidField."""
    if not named:
        return None if layout.stream else ()
    found = check_named(named, layout.stream)
    for part in layout.stream:
        if part.dtype.kind == "f" and not np.isfinite(np.frombuffer(found[part.name], part.dtype)).all():
            raise InvalidField(FIELD, f"'{part.name}' has a number that is not finite, expected finite ones")
    return tuple(found[part.name] for part in layout.stream)


def _check_same(key: Key, layout: InputLayout, given: StreamInputs, kept: StreamInputs) -> None:
    differ = [part.name for part, now, then in zip(layout.stream, given, kept, strict=True) if now != then]
    if differ:
        raise InvalidField(
            FIELD,
            f"'{join_names(differ)}' has other values than those with which stream '{key.stream_id}' began; "
            "leave them out to continue, or begin another stream",
        )
