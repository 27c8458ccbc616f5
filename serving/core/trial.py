"""Tries two timesteps of a foreign graph, to learn what the graph does not declare: the dimensions of its outputs.

It also tells whether streams get the same bits in a batch as alone. It is run in a process of its own
(`cli.graph_trial`): the graph is not trusted.
"""

import re
from typing import Any

import numpy as np
import onnxruntime

from tidegate.core.findings import Findings, TrialFailed
from tidegate.core.guess import Dim, Guess, GuessedTensor
from tidegate.core.spec import Array

STEPS = 2
# Two sizes above one tell an axis that is the batch from one that only happens to have its size. The last size is that
# of a few registers: most kernels that compute a batch in another order do so by then.
BATCHES = (1, 2, 3, 8)

# The types of numbers that a server takes.
SERVED = re.compile(r"float(16|32|64)|u?int(8|16|32|64)|bool")

Results = dict[str, Array]


def try_graph(path: str, guess: Guess) -> Findings:
    """Loads a graph and tries the description that was guessed for it.

    Raises TrialFailed.
    """
    trial = _Trial(path, guess)
    alone = trial.run([0])
    changed = {
        state.name: alone[state.next].shape for state in guess.state if alone[state.next].shape != _shape(state, 1)
    }
    not_finite = tuple(
        state.name
        for state in guess.state
        if alone[state.next].dtype.kind == "f" and not np.isfinite(alone[state.next]).all()
    )
    outputs: dict[str, tuple[Dim, ...]] = {output.name: alone[output.name].shape for output in guess.outputs}
    one_by_one = ""
    if guess.batched and not changed:
        try:
            runs = [alone, *(trial.run(range(size)) for size in BATCHES[1:])]
            one_by_one = trial.why_apart(runs)
            if not one_by_one:
                outputs = {name: _dims(name, runs) for name in outputs}
                one_by_one = trial.why_other_bits(runs)
        except TrialFailed as error:
            one_by_one = f"a batch of {BATCHES[1]} fails: {error}"
    return Findings(outputs, not_finite, changed, one_by_one)


class _Trial:
    def __init__(self, path: str, guess: Guess) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        onnxruntime.disable_telemetry_events()  # the parent has switched it off for the time before
        onnxruntime.set_default_logger_severity(4)
        self._guess = guess
        self._fetch = list(
            dict.fromkeys([*(output.name for output in guess.outputs), *(state.next for state in guess.state)])
        )
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TrialFailed(f"onnxruntime cannot load the graph: {_first_line(error)}") from error

    def run(self, rows: range | list[int]) -> Results:
        """Runs timesteps of a batch of streams, and returns the last results. A stream's values follow from its number."""
        state = {part.name: np.zeros(_shape(part, len(rows)), _dtype(part)) for part in self._guess.state}
        results: Results = {}
        for step in range(STEPS):
            feed = {
                part.name: np.full(_shape(part, len(rows)), part.value or 0, _dtype(part))
                if part.kind == "constant"
                else _values(part, step, rows)
                for part in self._guess.inputs
            }
            try:
                results = dict(zip(self._fetch, self._session.run(self._fetch, feed | state), strict=True))
            except Exception as error:
                raise TrialFailed(_first_line(error), ran=True) from error
            following = {part.name: results[part.next] for part in self._guess.state}
            if any(after.shape != state[name].shape for name, after in following.items()):
                break  # it cannot be fed again
            state = following
        return results

    def why_apart(self, runs: list[Results]) -> str:
        """Why the rows of a batch cannot be told apart; "" where they can."""
        for output in self._guess.outputs:
            if _dims(output.name, runs).count("batch") != 1:
                shapes = ", ".join(str(list(run[output.name].shape)) for run in runs)
                return f"no axis of output '{output.name}' is the batch: batches of 1, 2, 3 and 8 give {shapes}"
        for state in self._guess.state:
            if any(run[state.next].shape != _shape(state, batch) for run, batch in zip(runs, BATCHES, strict=True)):
                return f"'{state.next}' has no batch axis"
        return ""

    def why_other_bits(self, runs: list[Results]) -> str:
        """Where a stream has other bits in a batch than alone; "" where it has not."""
        axes = {output.name: _dims(output.name, runs).index("batch") for output in self._guess.outputs}
        axes |= {state.next: state.dims.index("batch") for state in self._guess.state}
        for row in range(BATCHES[-1]):
            alone = self.run([row])
            for run, batch in zip(runs, BATCHES, strict=True):
                for name, axis in axes.items() if row < batch else ():
                    if np.take(run[name], [row], axis).tobytes() != alone[name].tobytes():
                        return f"in a batch of {batch}, '{name}' has other bits than alone"
        return ""


def _dims(name: str, runs: list[Results]) -> tuple[Dim, ...]:
    """The dimensions of an output, from its shapes in batches of all sizes."""
    shapes = [run[name].shape for run in runs]
    if len({len(shape) for shape in shapes}) > 1:
        return ()
    return tuple("batch" if sizes == BATCHES else sizes[0] for sizes in zip(*shapes, strict=True))


def _shape(tensor: GuessedTensor, batch: int) -> tuple[int, ...]:
    return tuple(batch if size == "batch" else int(size or 0) for size in tensor.dims)


def _values(tensor: GuessedTensor, step: int, rows: range | list[int]) -> Array:
    """Small numbers; zeros for a type that counts, since a table may be short."""
    dtype = _dtype(tensor)
    if dtype.kind != "f":
        return np.zeros(_shape(tensor, len(rows)), dtype)
    each = [np.random.default_rng([step, row]).uniform(-1, 1, _shape(tensor, 1)).astype(dtype) for row in rows]
    return np.concatenate(each, tensor.dims.index("batch")) if "batch" in tensor.dims else each[0]


def _dtype(tensor: GuessedTensor) -> np.dtype[Any]:
    if not SERVED.fullmatch(tensor.dtype):
        raise TrialFailed(f"'{tensor.name}' is {tensor.dtype or 'no tensor'}, which is not served")
    return np.dtype(tensor.dtype)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
