"""What a trial of a foreign graph has found, and how it completes the guess."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tidegate.core.guess import Dim, Guess, GuessedInput, GuessedState, GuessedTensor, Question


class TrialFailed(Exception):
    """The graph could not be loaded or run. The message is the reason; `ran` tells that it was loaded, and refused its inputs."""

    def __init__(self, message: str, *, ran: bool = False) -> None:
        self.ran = ran
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a trial has found.

    Attributes:
        outputs: the dimensions of each prediction; without a batch where none of them can be it.
        not_finite: the state tensors that are not finite after two timesteps.
        changed: the state tensors whose next value has another shape, with that shape.
        one_by_one: why streams cannot be computed together, "" where they can.

    """

    outputs: dict[str, tuple[Dim, ...]]
    not_finite: tuple[str, ...]
    changed: dict[str, tuple[int, ...]]
    one_by_one: str


def to_json(guess: Guess) -> dict[str, Any]:
    """What a trial needs of a guess, for the other process."""
    return {name: [asdict(part) for part in getattr(guess, name)] for name in ("inputs", "state", "outputs")}


def from_json(data: dict[str, Any]) -> Guess:
    """What `to_json` was given."""

    def parts(name: str, kind: Any) -> list[Any]:
        return [
            kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in part.items()})
            for part in data[name]
        ]

    return Guess(parts("inputs", GuessedInput), parts("state", GuessedState), parts("outputs", GuessedTensor))


def findings_from_json(data: dict[str, Any]) -> Findings:
    """What `asdict` made of findings."""
    assert data.keys() == {field.name for field in fields(Findings)}
    shapes = {key: {name: tuple(dims) for name, dims in data[key].items()} for key in ("outputs", "changed")}
    return Findings(shapes["outputs"], tuple(data["not_finite"]), shapes["changed"], data["one_by_one"])


def apply_findings(guess: Guess, found: Findings) -> None:
    """Puts into a guess what its trial has found."""
    guess.outputs = [replace(output, dims=found.outputs[output.name]) for output in guess.outputs]
    if found.one_by_one:
        guess.remarks.append(f"rows run one by one, and their state has no batch: {found.one_by_one}")
        guess.state = [replace(part, dims=_alone(part.dims)) for part in guess.state]
        # With state it is enough that the state has no batch; then a row is one without a dimension of 1.
        if not guess.state or not all("batch" in output.dims for output in guess.outputs):
            guess.inputs = [replace(part, dims=_alone(part.dims)) for part in guess.inputs]
            guess.outputs = [replace(part, dims=_alone(part.dims)) for part in guess.outputs]
    guess.state = [replace(state, finite=state.name not in found.not_finite) for state in guess.state]
    guess.remarks += [
        f"state '{name}' is not finite after two timesteps of small numbers, so it may be that (finite = false); check it"
        for name in found.not_finite
    ]
    for state in guess.state:
        if state.name in found.changed:
            guess.questions.append(
                Question(
                    "",
                    f"'{state.next}' came out with shape {list(found.changed[state.name])}, expected "
                    f"{list(state.dims)} like '{state.name}': is it the next value of another input, or does it grow?",
                )
            )


def _alone(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(1 if size == "batch" else size for size in dims)


def ask_for_sizes(guess: Guess, error: TrialFailed) -> None:
    """Makes questions of the sizes that were guessed, after the graph could not be run with them."""
    x = guess.inputs[0]
    for name, size in guess.guessed_sizes.items():
        text = f"it cannot be run with {size} as the size of '{name}' of '{x.name}': how large is it? ({error})"
        guess.questions.append(Question(name, text))
