"""An exported graph, stepped as it is served: timestep by timestep, with its state carried. This module knows no torch."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tidegate.training.data.series import Floats, Ints, Span
from tidegate.training.errors import ModelUnreadable

# No measured value leaves the machine. The variable switches telemetry off while onnxruntime loads, the call in `Graph`
# from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

# Streams that are replayed as one batch. The bits of a row were measured to be the same alone and in batches of up to 64.
BATCH = 64
# Values of the kept outputs that a chunk of a replay holds at most: 4 MB. Their errors in float64, with all that is summed of
# them, need some twenty times that.
VALUES_AT_ONCE = 2**20
# The types of state beside float32; our own networks have none.
DTYPES = {"tensor(double)": np.float64, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class Graph:
    """An exported graph and the description in its metadata."""

    def __init__(self, content: bytes, name: str) -> None:
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        # A step takes microseconds; a second thread costs more than it saves.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each kind of damage, and no common one
            raise ModelUnreadable(f"model: {name} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "tidegate" not in metadata:
            raise ModelUnreadable(
                f"model: {name} does not describe itself; expected a file that `tidegate train` wrote"
            )
        self.description: dict[str, Any] = json.loads(metadata["tidegate"])
        self.state = {pair["name"]: pair for pair in self.description["state"]}
        self.outputs = [output["name"] for output in self.description["outputs"]]
        self._dtypes = {part.name: DTYPES.get(part.type, np.float32) for part in self.session.get_inputs()}
        self._fetch = [*self.outputs, *(pair["next"] for pair in self.state.values())]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a `model.onnx`, or the one in a folder.

        Raises:
            ModelUnreadable: it is missing, or `tidegate train` did not write it.
        """
        file = path / "model.onnx" if path.is_dir() else path
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ModelUnreadable(f"model: cannot read {file}: {error.strerror}") from error
        return cls(content, str(file))

    @property
    def features(self) -> list[str]:
        """The names of the columns of `x`, in order."""
        return [feature["name"] for feature in self.description["features"]]

    @property
    def targets(self) -> list[str]:
        """The names of the targets; for a classification those of the classes."""
        return list(self.description["outputs"][0]["targets"])

    @property
    def horizons(self) -> list[int]:
        """The horizons of the forecast, in timesteps."""
        return list(self.description["outputs"][0]["horizons"])

    @property
    def units(self) -> list[str]:
        """The units of the targets."""
        return list(self.description["outputs"][0]["units"])

    @property
    def quantiles(self) -> list[float]:
        """The levels of the output `quantiles`, rising; empty without that output."""
        return list(self.output("quantiles")["quantiles"]) if "quantiles" in self.outputs else []

    def output(self, name: str) -> dict[str, Any]:
        """The description of an output.

        Raises:
            StopIteration: there is no such output; see `outputs`.
        """
        described: dict[str, Any] = next(part for part in self.description["outputs"] if part["name"] == name)
        return described

    def initial_state(self, batch: int) -> dict[str, Floats]:
        """The state of streams that have not seen a timestep."""
        return {name: self._initial(pair, batch) for name, pair in self.state.items()}

    def _initial(self, pair: dict[str, Any], batch: int) -> Floats:
        """One state tensor of `batch` new streams; `initial` is one number or the values of a stream, 0 if absent."""
        row: Floats = np.asarray(pair.get("initial", 0.0), self._dtypes[pair["name"]])
        of_one = [1 if size == "batch" else size for size in pair["shape"]]
        whole = np.broadcast_to(row, of_one) if row.ndim == 0 else row.reshape(of_one)
        return np.repeat(whole, batch, axis=self._batch_axis(pair["name"]))

    def _batch_axis(self, name: str) -> int:
        return int(self.state[name]["shape"].index("batch"))

    def step(self, x: Floats, state: dict[str, Floats]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(batch, features) and the state -> the outputs by name, each (batch, ...), and the next state."""
        results = self.session.run(self._fetch, {"x": x, **state})
        count = len(self.outputs)
        return dict(zip(self.outputs, results[:count], strict=True)), dict(
            zip(self.state, results[count:], strict=True)
        )

    def replay(self, values: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(time, batch, features), step by step from the initial state -> the outputs (time, batch, ...) and the last state."""
        state = self.initial_state(values.shape[1])
        steps: dict[str, list[Floats]] = {name: [] for name in self.outputs}
        for x in values:
            outputs, state = self.step(x, state)
            for name, rows in outputs.items():
                steps[name].append(rows)
        return {name: np.stack(rows) for name, rows in steps.items()}, state

    def replay_segments(
        self, values: Floats, segments: Sequence[Span], *, keep: Sequence[str] = ()
    ) -> dict[str, Floats]:
        """Replay each segment [first, end) of the rows as a new stream, up to `BATCH` of them at once.

        Args:
            values: (time, features) raw.
            segments: the rows of each stream; they may overlap.
            keep: the outputs to return; all if empty.

        Returns:
            For each output (rows, ...), the segments concatenated in the given order.
        """
        total = sum(end - first for first, end in segments)
        results = {name: np.empty((total, *shape), np.float32) for name, shape in self._kept(keep).items()}
        for places, outputs in self.replay_chunks(values, segments, keep=keep):
            for name, rows in outputs.items():
                results[name][places] = rows
        return results

    def replay_chunks(
        self, values: Floats, segments: Sequence[Span], *, keep: Sequence[str] = ()
    ) -> Iterator[tuple[Ints, dict[str, Floats]]]:
        """The same, some rows at a time, in the order of the timesteps: all outputs at once may not fit into memory.

        Yields:
            The positions of rows in the concatenated segments, and for each output (rows, ...).
        """
        kept = self._kept(keep)
        values_of_row = sum(math.prod(shape) for shape in kept.values())
        lengths = np.array([end - first for first, end in segments], np.int64)
        places = np.cumsum(lengths) - lengths
        # The longest first: streams that have ended are then the last rows of the batch, and are cut off.
        order = np.argsort(-lengths, kind="stable")
        for low in range(0, len(order), BATCH):
            together = order[low : low + BATCH]
            firsts = np.array([segments[index][0] for index in together], np.int64)
            steps: list[tuple[Ints, dict[str, Floats]]] = []
            held = 0
            for step in self._replay_batch(values, firsts, lengths[together], places[together]):
                steps.append(step)
                held += len(step[0]) * values_of_row
                if held >= VALUES_AT_ONCE:
                    yield _joined(steps, kept)
                    steps, held = [], 0
            if steps:
                yield _joined(steps, kept)

    def _kept(self, keep: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of the kept outputs of a row, by name."""
        return {
            output["name"]: tuple(output["shape"][1:])
            for output in self.description["outputs"]
            if not keep or output["name"] in keep
        }

    def _replay_batch(
        self, values: Floats, firsts: Ints, lengths: Ints, places: Ints
    ) -> Iterator[tuple[Ints, dict[str, Floats]]]:
        """Replay streams (batch,) that begin at `firsts`, the longest first: for each step the positions and the outputs."""
        state = self.initial_state(len(firsts))
        alive = len(firsts)
        for step in range(int(lengths.max(initial=0))):
            remaining = int(np.searchsorted(-lengths, -step))  # those that are longer than `step`
            if remaining < alive:
                alive = remaining
                state = {name: self._first_streams(name, part, alive) for name, part in state.items()}
            outputs, state = self.step(values[firsts[:alive] + step], state)
            yield places[:alive] + step, outputs

    def _first_streams(self, name: str, part: Floats, count: int) -> Floats:
        """The first streams of a state tensor."""
        return np.ascontiguousarray(part[(slice(None),) * self._batch_axis(name) + (slice(count),)])


def _joined(steps: Sequence[tuple[Ints, dict[str, Floats]]], names: Iterable[str]) -> tuple[Ints, dict[str, Floats]]:
    """Some steps as one chunk."""
    places = np.concatenate([part for part, _ in steps])
    return places, {
        name: np.concatenate([outputs[name] for _, outputs in steps], dtype=np.float32, casting="unsafe")
        for name in names
    }
