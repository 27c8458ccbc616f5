"""Scores a model the way it is served: the exported graph, one timestep after another, its state carried along.

Knows no torch: what is judged is the file, through onnxruntime, beside persistence and seasonal-naive.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from training.baselines import persistence, season_steps, seasonal_naive
from training.errors import MissingColumn, ModelUnreadable, SeriesTooShort
from training.series import Floats, Series, Spans, ahead, placed, rows_of

# Nothing that a person measures leaves the machine. The variable counts while onnxruntime is being loaded, the call
# in `Graph` from then on.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort


@dataclass(frozen=True)
class Error:
    """Mean absolute error and root mean squared error, in the target's unit."""

    mae: float
    rmse: float


@dataclass(frozen=True)
class Score:
    """One target at one horizon, the model beside its baselines, all on the same `count` timesteps."""

    target: str
    unit: str
    horizon: int
    horizon_s: float | None
    count: int
    model: Error
    persistence: Error
    seasonal_naive: Error | None

    @property
    def wins(self) -> bool:
        """Whether the model's MAE is below that of every baseline."""
        rivals = [self.persistence] + ([self.seasonal_naive] if self.seasonal_naive else [])
        return all(self.model.mae < rival.mae for rival in rivals)

    @property
    def skill(self) -> float:
        """The part of the better baseline's MAE that the model takes away: 0 is no better, 1 is perfect."""
        rivals = [self.persistence.mae] + ([self.seasonal_naive.mae] if self.seasonal_naive else [])
        return 1.0 - self.model.mae / min(rivals) if min(rivals) > 0 else -math.inf


@dataclass(frozen=True)
class Scores:
    """The table: a row for each target and horizon, on rows [start, stop) of the series."""

    data: str
    start: str
    end: str
    rows: int
    season: int | None
    table: tuple[Score, ...]

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline at every horizon of every target."""
        return all(score.wins for score in self.table)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for the card and for `--json`."""
        table = [asdict(score) | {"skill": score.skill, "beats_baselines": score.wins} for score in self.table]
        return asdict(self) | {"table": table, "beats_baselines": self.wins}


class Graph:
    """An exported graph and the description that travels in it."""

    def __init__(self, content: bytes, name: str) -> None:
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        # A step takes microseconds; handing it to a second thread costs more than it saves.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each kind of damage, and no common one
            raise ModelUnreadable(f"model: {name} is not a readable ONNX file: {str(error).splitlines()[0]}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "tidegate" not in metadata:
            raise ModelUnreadable(
                f"model: {name} does not describe itself; expected a file that `tidegate train` wrote"
            )
        self.description: dict[str, Any] = json.loads(metadata["tidegate"])
        self.state = {pair["name"]: pair for pair in self.description["state"]}
        self.outputs = [output["name"] for output in self.description["outputs"]]
        self._fetch = [*self.outputs, *(pair["next"] for pair in self.state.values())]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `model.onnx`, or the one in the folder.

        Raises:
            ModelUnreadable: there is none, or it is not one of ours.
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
        """What is forecast."""
        return list(self.description["outputs"][0]["targets"])

    @property
    def horizons(self) -> list[int]:
        """How far ahead, in timesteps."""
        return list(self.description["outputs"][0]["horizons"])

    def fresh_state(self, batch: int) -> dict[str, Floats]:
        """The state of streams that have not seen a timestep."""
        return {
            name: np.zeros([batch if size == "batch" else size for size in pair["shape"]], np.float32)
            for name, pair in self.state.items()
        }

    def step(self, x: Floats, state: dict[str, Floats]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(batch, features) and the state -> the outputs by name, each (batch, ...), and the next state."""
        results = self.session.run(self._fetch, {"x": x, **state})
        count = len(self.outputs)
        return dict(zip(self.outputs, results[:count], strict=True)), dict(
            zip(self.state, results[count:], strict=True)
        )

    def replay(self, values: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(time, batch, features), step by step from a fresh state -> the outputs (time, batch, ...) and the last state."""
        state = self.fresh_state(values.shape[1])
        steps: dict[str, list[Floats]] = {name: [] for name in self.outputs}
        for x in values:
            outputs, state = self.step(x, state)
            for name, rows in outputs.items():
                steps[name].append(rows)
        return {name: np.stack(rows) for name, rows in steps.items()}, state


def evaluate(graph: Graph, series: Series, spans: Spans | None = None, *, season: int | None = None) -> Scores:
    """Replay the spans from a fresh state, as newly opened streams, and score every forecast that came true.

    A time gap ends the stream and opens a new one. Only timesteps count where model and baselines all have a forecast.

    Args:
        graph: what to judge.
        series: with the columns that the graph wants, in any order, and perhaps more.
        spans: the rows to replay, all when None. The baselines know the rows before them.
        season: timesteps after which the seasonal-naive baseline repeats; a day when None and the period is known.

    Raises:
        MissingColumn: the series lacks a feature of the graph.
        SeriesTooShort: nothing that was forecast came true within the rows.
    """
    spans = series.spans if spans is None else spans
    ordered = _ordered(series, graph.features)
    targets, horizons = [ordered.column(name) for name in graph.targets], graph.horizons
    season = season or season_steps(series.period_s)
    mine = np.full((rows_of(spans), len(horizons), len(targets)), np.nan, np.float32)
    for place, first, end in placed(ordered, spans):
        outputs, _ = graph.replay(ordered.values[first:end, None])
        mine[place : place + end - first] = outputs["forecast"][:, 0]
    forecasts = {"model": mine, "persistence": persistence(ordered, targets, horizons, spans)}
    if season:
        forecasts["seasonal_naive"] = seasonal_naive(ordered, targets, horizons, spans, season=season)
    truth = ahead(ordered, targets, horizons, spans)
    table = tuple(
        _score(graph, truth, forecasts, place, index, series.name)
        for place in range(len(targets))
        for index in range(len(horizons))
    )
    return Scores(
        data=series.name,
        start=str(series.times[spans[0][0]].astype("datetime64[s]")),
        end=str(series.times[spans[-1][1] - 1].astype("datetime64[s]")),
        rows=rows_of(spans),
        season=season,
        table=table,
    )


def _ordered(series: Series, features: Sequence[str]) -> Series:
    """The series with exactly these columns, in this order."""
    missing = [name for name in features if name not in series.names]
    if missing:
        raise MissingColumn(
            f"{series.name}: no column {missing[0]!r}, which the model needs; there are: {', '.join(series.names)}"
        )
    places = [series.names.index(name) for name in features]
    units = tuple(series.units[place] for place in places)
    return replace(series, names=tuple(features), units=units, values=np.ascontiguousarray(series.values[:, places]))


def _score(graph: Graph, truth: Floats, forecasts: dict[str, Floats], place: int, index: int, data: str) -> Score:
    """One row of the table."""
    errors = {name: (forecast - truth)[:, index, place].astype(np.float64) for name, forecast in forecasts.items()}
    known = ~np.isnan(sum(errors.values()))
    horizon, target = graph.horizons[index], graph.targets[place]
    if not known.any():
        raise SeriesTooShort(
            f"{data}: no forecast of {target!r} {horizon} steps ahead can be scored on {len(truth)} rows; give more rows"
        )
    period_s = graph.description["period_s"]
    scored = {
        name: Error(mae=float(np.abs(error[known]).mean()), rmse=float(np.sqrt(np.square(error[known]).mean())))
        for name, error in errors.items()
    }
    return Score(
        target=target,
        unit=graph.description["outputs"][0]["units"][place],
        horizon=horizon,
        horizon_s=None if period_s is None else horizon * period_s,
        count=int(known.sum()),
        model=scored["model"],
        persistence=scored["persistence"],
        seasonal_naive=scored.get("seasonal_naive"),
    )
