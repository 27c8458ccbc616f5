"""Scores a model the way it is served: the exported graph, one timestep after another, its state carried along.

Knows no torch: what is judged is the file, through onnxruntime, beside persistence and seasonal-naive.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from training.baselines import persistence, season_steps, seasonal_naive
from training.data import Floats, Series, ahead
from training.errors import MissingColumn, ModelUnreadable, SeriesTooShort

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
        self.outputs = ["forecast", *(pair["next"] for pair in self.state.values())]

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

    def step(self, x: Floats, state: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """(batch, features) and the state -> (batch, horizons, targets) and the next state."""
        forecast, *following = self.session.run(self.outputs, {"x": x, **state})
        return forecast, dict(zip(self.state, following, strict=True))

    def replay(self, values: Floats) -> Floats:
        """(time, batch, features), step by step from a fresh state -> (time, batch, horizons, targets)."""
        state = self.fresh_state(values.shape[1])
        forecasts = []
        for x in values:
            forecast, state = self.step(x, state)
            forecasts.append(forecast)
        return np.stack(forecasts)


def evaluate(
    graph: Graph, series: Series, *, start: int = 0, stop: int | None = None, season: int | None = None
) -> Scores:
    """Replay rows [start, stop) from a fresh state, as a newly opened stream, and score every forecast that came true.

    A time gap ends the stream and opens a new one. Only timesteps count where model and baselines all have a forecast.

    Args:
        graph: what to judge.
        series: with the columns that the graph wants, in any order, and perhaps more.
        start: the first row to replay. The baselines know the rows before it.
        stop: the end of the rows; of the series when None.
        season: timesteps after which the seasonal-naive baseline repeats; a day when None and the period is known.

    Raises:
        MissingColumn: the series lacks a feature of the graph.
        SeriesTooShort: nothing that was forecast came true within the rows.
    """
    end = len(series) if stop is None else stop
    ordered = _ordered(series, graph.features)
    targets, horizons = [ordered.column(name) for name in graph.targets], graph.horizons
    season = season or season_steps(series.period_s)
    replayed = [graph.replay(ordered.values[a:b, None]) for a, b in ordered.stretches(start, end)]
    forecasts = {
        "model": np.concatenate(replayed)[:, 0] if replayed else np.empty((0, len(horizons), len(targets)), np.float32),
        "persistence": persistence(ordered, targets, horizons, start, end),
    }
    if season:
        forecasts["seasonal_naive"] = seasonal_naive(ordered, targets, horizons, start, end, season=season)
    truth = ahead(ordered, targets, horizons, start, end)
    table = tuple(
        _score(graph, truth, forecasts, place, index, series.name)
        for place in range(len(targets))
        for index in range(len(horizons))
    )
    return Scores(
        data=series.name,
        start=str(series.times[start].astype("datetime64[s]")),
        end=str(series.times[end - 1].astype("datetime64[s]")),
        rows=end - start,
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
    values = np.ascontiguousarray(series.values[:, places])
    return Series(series.name, series.sha256, tuple(features), units, values, series.times, series.period_s)


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
