"""Whether a stream moves from one version of its model to another.

    pin      the stream stays on its version until it is closed for good
    rewarm   the last timesteps that it got are replayed into the new version, from that version's initial state
    reset    it continues from the new version's initial state

A stream moves only between versions with the same features and outputs, for the answers to its earlier timesteps are
carried over; see `difference`.
"""

from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tidegate.core.spec import Spec  # importing it loads numpy, and the command line imports this module

PolicyName = Literal["pin", "rewarm", "reset"]
# The longest ring. With a hundred features it takes 1.6 MB a stream: more is a mistake.
REWARM_STEPS_MAX = 4096


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


def may_move(old: "Spec", new: "Spec", request: MoveRequest) -> bool:
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


def difference(old: "Spec", new: "Spec") -> str:
    """Why no stream can move between two versions; empty when it can."""
    if old.name != new.name:
        return f"{old.name} and {new.name} are different models"
    if reason := _other_features(old, new):
        return reason
    inputs = [[(part.name, part.dtype, part.shape, part.kind) for part in spec.inputs] for spec in (old, new)]
    if inputs[0] != inputs[1]:
        names = [", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape, _ in parts) for parts in inputs]
        return f"inputs: {old.title} has {names[0]}; {new.title} has {names[1]}"
    outputs = [[(part.name, part.dtype, part.shape) for part in spec.outputs] for spec in (old, new)]
    if outputs[0] != outputs[1]:
        names = [", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in parts) for parts in outputs]
        return f"outputs: {old.title} has {names[0]}; {new.title} has {names[1]}"
    if old.handles_missing and not new.handles_missing:
        return f"missing values: {old.title} takes them, {new.title} does not"
    return ""


def _other_features(old: "Spec", new: "Spec") -> str:
    """What differs in names, units and words; empty when nothing does."""
    was, now = ([(feature.name, feature.unit) for feature in spec.features] for spec in (old, new))
    if was != now:
        return f"features: {old.title} has {_names(was)}, {new.title} has {_names(now)}"
    for feature, other in zip(old.features, new.features, strict=True):
        # A word would have another number: the values of old timesteps would mean something else.
        if feature.categories != other.categories:
            words = [", ".join(part.categories) or "numbers" for part in (feature, other)]
            return f"categories of {feature.name}: {old.title} has {words[0]}; {new.title} has {words[1]}"
    return ""


def _names(features: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} [{unit}]" if unit else name for name, unit in features)
