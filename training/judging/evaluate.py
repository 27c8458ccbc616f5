"""Scores a model the way it is served: the exported graph, one timestep after another, its state carried along.

Knows no torch: what is judged is the file, through onnxruntime, beside the baselines and on the same timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from training.data.series import Floats, Series, Spans, ahead, rows_of, season_steps
from training.data.split import Split
from training.errors import MissingColumn, SeriesTooShort
from training.judging import metrics
from training.judging.baselines import persistence, residual_quantiles, seasonal_naive
from training.judging.classification import labels_of, score_classes
from training.judging.cold import cold_start
from training.judging.detection import score_anomalies
from training.judging.graph import Graph
from training.judging.metrics import Bools, Doubles
from training.judging.ridge import fit_ridge
from training.judging.scores import Error, Interval, Quantile, Score, Scores

# The outputs that are judged.
WANTED = ("forecast", "quantiles", "interval", "probability", "score", "alarm", "warm")

# A baseline that has a forecast for a smaller share of the timesteps is left out, else all would be scored on those few:
# seasonal-naive where stretches are shorter than a season.
SPARSE = 0.5


@dataclass(frozen=True)
class Forecasts:
    """What one forecaster says: `point` (rows, horizons, targets) and `quantiles` (rows, horizons, targets, levels).

    Instead of quantiles a baseline has `offsets` (horizons, targets, levels) of them from its point forecast.
    """

    point: Floats
    quantiles: Floats | None = None
    offsets: Doubles | None = None

    def at(self, index: int, place: int, known: Bools) -> tuple[Doubles, Doubles | None]:
        """One horizon of one target on the known rows: (n,), and (n, levels) or None."""
        point = self.point[known, index, place].astype(np.float64)
        if self.quantiles is not None:
            return point, self.quantiles[known, index, place].astype(np.float64)
        if self.offsets is None or np.isnan(self.offsets[index, place]).any():
            return point, None
        return point, point[:, None] + self.offsets[index, place]


def evaluate(
    graph: Graph,
    series: Series,
    spans: Spans | None = None,
    *,
    season: int | None = None,
    split: Split | None = None,
    scales: dict[str, float] | None = None,
) -> Scores:
    """Replay the spans from a fresh state, as newly opened streams, and score every forecast that came true.

    A time gap ends the stream and opens a new one. Only timesteps count where model and baselines all have a forecast.

    Args:
        graph: what to judge.
        series: with the columns that the graph wants, in any order, and perhaps more.
        spans: the rows to replay; the split's held-out part, or all rows, when None. The baselines know the rows before.
        season: timesteps after which the seasonal-naive baseline repeats; a day when None and the period is known.
        split: of this series, if the model learned from it; without it there are no baselines that have to be fitted.
        scales: what to divide a MAE by to give a MASE, by target, where there is no split to tell.

    Raises:
        MissingColumn: the series lacks a feature of the graph.
        SeriesTooShort: nothing that was forecast came true within the rows.
    """
    if spans is None:
        spans = split.test if split else series.spans
    ordered = _ordered(series, graph.features)
    season = season or season_steps(series.period_s)
    outputs = graph.replay_rows(ordered.values, ordered.stretches(spans), keep=WANTED)
    sections = _classes if "probability" in outputs else _forecasts
    return replace(
        sections(graph, ordered, spans, outputs, split=split, season=season, scales=scales or {}),
        data=series.name,
        start=str(min(series.times[first] for first, _ in spans).astype("datetime64[s]")),
        end=str(max(series.times[end - 1] for _, end in spans).astype("datetime64[s]")),
        rows=rows_of(spans),
    )


def _classes(
    graph: Graph,
    series: Series,
    spans: Spans,
    outputs: dict[str, Floats],
    *,
    split: Split | None,
    season: int | None,  # noqa: ARG001  classes have no season
    scales: dict[str, float],  # noqa: ARG001  nor a scale
) -> Scores:
    """The sections of a classification."""
    classes, probability = graph.targets, outputs["probability"]
    series = replace(series, labels=labels_of(series, classes), classes=tuple(classes))
    assert series.labels is not None  # set in the line above
    truth = np.concatenate([series.labels[first:end] for first, end in spans])
    return Scores(
        classification=score_classes(series, classes, spans, probability, split),
        cold_start=cold_start(graph, series, spans, "probability", truth, probability, [("class", 0)]),
    )


def _forecasts(
    graph: Graph,
    series: Series,
    spans: Spans,
    outputs: dict[str, Floats],
    *,
    split: Split | None,
    season: int | None,
    scales: dict[str, float],
) -> Scores:
    """The sections of a forecast."""
    targets, horizons = [series.column(name) for name in graph.targets], graph.horizons
    truth = ahead(series, targets, horizons, spans)
    scales = _scales(graph, series, split, season) if split else scales
    names = [(target, horizon) for target in graph.targets for horizon in horizons]
    return Scores(
        season=season,
        table=_forecast_table(graph, series, spans, outputs, truth, season=season, split=split, scales=scales),
        mase_scale=scales,
        anomaly=score_anomalies(graph, series, spans, outputs, split) if "alarm" in outputs else None,
        cold_start=cold_start(graph, series, spans, "forecast", truth, outputs["forecast"], names),
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


def _scales(graph: Graph, series: Series, split: Split, season: int | None) -> dict[str, float]:
    """By target, the mean absolute error of the naive forecast on the training part, seasonal where that can be."""
    stretches = series.stretches(split.train)
    scales = {}
    for name in graph.targets:
        values = series.values[:, series.column(name)]
        scale = (metrics.naive_scale(values, stretches, season) if season else None) or metrics.naive_scale(
            values, stretches, 1
        )
        if scale is not None:
            scales[name] = scale
    return scales


def _forecast_table(
    graph: Graph,
    series: Series,
    spans: Spans,
    outputs: dict[str, Floats],
    truth: Floats,
    *,
    season: int | None,
    split: Split | None,
    scales: dict[str, float],
) -> tuple[Score, ...]:
    """A row for each target and horizon."""
    targets = [series.column(name) for name in graph.targets]
    forecasts = {"model": Forecasts(outputs["forecast"], outputs.get("quantiles"))}
    forecasts |= _rivals(series, targets, graph, spans, season, split)
    return tuple(
        _score(graph, truth, forecasts, outputs.get("interval"), place, index, series.name, scales)
        for place in range(len(targets))
        for index in range(len(graph.horizons))
    )


def _rivals(
    series: Series, targets: Sequence[int], graph: Graph, spans: Spans, season: int | None, split: Split | None
) -> dict[str, Forecasts]:
    """The baselines, with constant quantiles from the validation part where there is one."""
    horizons, levels = graph.horizons, graph.quantiles
    ridge = fit_ridge(series, split, targets, horizons, season=season) if split else None
    rivals: dict[str, Callable[[Spans], Floats]] = {"persistence": partial(persistence, series, targets, horizons)}
    if season:
        rivals["seasonal_naive"] = partial(seasonal_naive, series, targets, horizons, season=season)
    if ridge:
        rivals["ridge"] = partial(ridge.forecast, series)
    offsets: dict[str, Doubles] = {}
    if split and levels:
        chosen = ahead(series, targets, horizons, split.validation)
        offsets = {
            name: residual_quantiles(forecast(split.validation), chosen, levels) for name, forecast in rivals.items()
        }
    return {name: Forecasts(forecast(spans), offsets=offsets.get(name)) for name, forecast in rivals.items()}


def _score(
    graph: Graph,
    truth: Floats,
    forecasts: dict[str, Forecasts],
    interval: Floats | None,
    place: int,
    index: int,
    data: str,
    scales: dict[str, float],
) -> Score:
    """One row of the table."""
    target, horizon = graph.targets[place], graph.horizons[index]
    true = truth[:, index, place].astype(np.float64)
    points = {name: said.point[:, index, place].astype(np.float64) for name, said in forecasts.items()}
    must = ~np.isnan(true + points["model"] + points["persistence"])
    forecasts = {
        name: said for name, said in forecasts.items() if (~np.isnan(points[name][must])).sum() >= SPARSE * must.sum()
    }
    known = ~np.isnan(true + sum(points[name] for name in forecasts))
    if not known.any():
        raise SeriesTooShort(
            f"{data}: no forecast of {target!r} {horizon} steps ahead can be scored on {len(truth)} rows; give more rows"
        )
    scored = {
        name: _error(true[known], said.at(index, place, known), graph.quantiles, scales.get(target))
        for name, said in forecasts.items()
    }
    period_s = graph.description["period_s"]
    return Score(
        target=target,
        unit=graph.units[place],
        horizon=horizon,
        horizon_s=None if period_s is None else horizon * period_s,
        count=int(known.sum()),
        model=scored["model"],
        persistence=scored["persistence"],
        seasonal_naive=scored.get("seasonal_naive"),
        ridge=scored.get("ridge"),
        interval=None if interval is None else _interval(graph, interval[known, index, place], true[known]),
    )


def _error(truth: Doubles, said: tuple[Doubles, Doubles | None], levels: Sequence[float], scale: float | None) -> Error:
    """All that is known of one forecaster: truth (n,), its point forecasts (n,) and quantiles (n, levels)."""
    point, quantiles = said
    mae = metrics.mean_absolute(point - truth)
    error = Error(mae=mae, rmse=metrics.root_mean_square(point - truth), mase=None if scale is None else mae / scale)
    if quantiles is None or not levels:
        return error
    losses, below = metrics.pinball(truth, quantiles, levels), metrics.share_below(truth, quantiles)
    share, width = metrics.coverage_and_width(truth, quantiles[:, 0], quantiles[:, -1])
    return replace(
        error,
        pinball=float(losses.mean()),
        # A single quantile makes no interval.
        coverage=share if len(levels) > 1 else None,
        width=width if len(levels) > 1 else None,
        quantiles=tuple(
            Quantile(level, float(loss), float(part)) for level, loss, part in zip(levels, losses, below, strict=True)
        ),
    )


def _interval(graph: Graph, interval: Floats, truth: Doubles) -> Interval:
    """Of the output `interval` (n, 2)."""
    share, width = metrics.coverage_and_width(truth, *interval.astype(np.float64).T)
    return Interval(graph.output("interval").get("coverage"), share, width)
