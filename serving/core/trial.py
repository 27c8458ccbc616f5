"""Tries two timesteps of a foreign graph, to learn what the graph does not declare: the dimensions of its outputs.

It is run in a process of its own (`cli.graph_trial`): the graph is not trusted.
"""

from typing import Any

import numpy as np
import onnxruntime

from tidegate.core.findings import Findings, TrialFailed
from tidegate.core.guess import Dim, Guess, GuessedTensor
from tidegate.core.spec import Array

STEPS = 2
# Two sizes above one tell an axis that is the batch from one that only happens to have its size.
BATCHES = (1, 2, 3)


def try_graph(path: str, guess: Guess) -> Findings:
    """Loads a graph and tries the description that was guessed for it.

    Raises TrialFailed.
    """
    trial = _Trial(path, guess)
    shapes = [trial.run(1)]
    not_finite, changed = trial.not_finite, trial.changed
    one_by_one = ""
    if guess.batched and not changed:
        try:
            shapes += [trial.run(size) for size in BATCHES[1:]]
            one_by_one = trial.why_one_by_one(shapes)
        except TrialFailed as error:
            one_by_one = f"a batch of {BATCHES[1]} fails: {error}"
    together = len(shapes) == len(BATCHES) and not one_by_one
    outputs = {
        output.name: _dims([run[output.name] for run in shapes]) if together else shapes[0][output.name]
        for output in guess.outputs
    }
    return Findings(outputs, not_finite, changed, one_by_one)


class _Trial:
    def __init__(self, path: str, guess: Guess) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        onnxruntime.disable_telemetry_events()  # the parent has switched it off for the time before
        onnxruntime.set_default_logger_severity(4)
        self._guess = guess
        self.not_finite: tuple[str, ...] = ()
        self.changed: dict[str, tuple[int, ...]] = {}
        self._fetch = [output.name for output in guess.outputs] + [state.next for state in guess.state]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TrialFailed(f"onnxruntime cannot load the graph: {_first_line(error)}") from error

    def run(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Runs two timesteps. Returns the shapes of the outputs and of the next states."""
        rng = np.random.default_rng(0)
        state = {part.name: _values(part, batch, 0.0) for part in self._guess.state}
        for _ in range(STEPS):
            feed = {
                part.name: _values(part, batch, part.value) if part.kind == "constant" else _random(part, batch, rng)
                for part in self._guess.inputs
            }
            try:
                results = dict(zip(self._fetch, self._session.run(self._fetch, feed | state), strict=True))
            except Exception as error:
                raise TrialFailed(_first_line(error)) from error
            following = {part.name: results[part.next] for part in self._guess.state}
            if batch == 1:
                self.changed |= {
                    name: after.shape for name, after in following.items() if after.shape != state[name].shape
                }
                self.not_finite = tuple(
                    name
                    for name, after in following.items()
                    if after.dtype.kind == "f" and not np.isfinite(after).all()
                )
            if self.changed:
                break
            state = following
        return {name: result.shape for name, result in results.items()}

    def why_one_by_one(self, shapes: list[dict[str, tuple[int, ...]]]) -> str:
        """Why the rows of a batch cannot be told apart; "" where they can."""
        for output in self._guess.outputs:
            if _dims([run[output.name] for run in shapes]).count("batch") != 1:
                sizes = ", ".join(str(list(run[output.name])) for run in shapes)
                return f"no axis of output '{output.name}' is the batch: batches of 1, 2 and 3 give {sizes}"
        for state in self._guess.state:
            if any(run[state.next] != _shape(state, batch) for run, batch in zip(shapes, BATCHES, strict=True)):
                return f"'{state.next}' has no batch axis"
        return ""


def _dims(shapes: list[tuple[int, ...]]) -> tuple[Dim, ...]:
    """The dimensions of an output, from its shapes in batches of 1, 2 and 3."""
    if len({len(shape) for shape in shapes}) > 1:
        return ()
    return tuple("batch" if sizes == BATCHES else sizes[0] for sizes in zip(*shapes, strict=True))


def _shape(tensor: GuessedTensor, batch: int) -> tuple[int, ...]:
    return tuple(batch if size == "batch" else int(size or 0) for size in tensor.dims)


def _values(tensor: GuessedTensor, batch: int, value: float | None) -> Array:
    return np.full(_shape(tensor, batch), value or 0, _dtype(tensor))


def _random(tensor: GuessedTensor, batch: int, rng: np.random.Generator) -> Array:
    """Small numbers; zeros for a type that counts, since a table may be short."""
    dtype = _dtype(tensor)
    if dtype.kind != "f":
        return np.zeros(_shape(tensor, batch), dtype)
    return np.asarray(rng.uniform(-1, 1, _shape(tensor, batch)), dtype)


def _dtype(tensor: GuessedTensor) -> np.dtype[Any]:
    try:
        return np.dtype(tensor.dtype)
    except TypeError:
        raise TrialFailed(f"'{tensor.name}' is {tensor.dtype or 'no tensor'}, which is not served") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
