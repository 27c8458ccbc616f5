"""Scores a model as it is served: the exported graph, timestep by timestep, with its state carried.

This module knows no torch. It scores the file, through onnxruntime, beside the baselines and on the same timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tidegate.training.data.gaps import absence
from tidegate.training.data.series import Floats, Series, Spans, count_rows, future_values, season_steps
from tidegate.training.data.split import Split
from tidegate.training.errors import MissingColumn, SeriesTooShort
from tidegate.training.judging import metrics
from tidegate.training.judging.baselines import persistence, residual_quantiles, seasonal_naive
from tidegate.training.judging.classification import labels_of, score_classes
from tidegate.training.judging.cold_start import cold_start
from tidegate.training.judging.detection import FaultyReplay, left_out, score_anomalies
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.metrics import Bools, Doubles
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.ridge import Ridge, fit_ridge
from tidegate.training.judging.scores import Error, Interval, Quantile, Score, Scores

# A baseline with forecasts for a smaller share of the timesteps is left out; otherwise all would be scored on those few.
# An example is seasonal-naive on segments shorter than a season.
MIN_SHARE = 0.5


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of one model or baseline.

    `point` is (rows, horizons, targets), `quantiles` (rows, horizons, targets, levels). A baseline has, instead of
    quantiles, their `offsets` (horizons, targets, levels) from its point forecast.
    """

    point: Floats
    quantiles: Floats | None = None
    offsets: Doubles | None = None

    def at(self, horizon_index: int, target_index: int, known: Bools) -> tuple[Doubles, Doubles | None]:
        """One horizon of one target on the known rows: point (n,), and quantiles (n, levels) or None."""
        point = self.point[known, horizon_index, target_index].astype(np.float64)
        if self.quantiles is not None:
            return point, self.quantiles[known, horizon_index, target_index].astype(np.float64)
        if self.offsets is None or np.isnan(self.offsets[horizon_index, target_index]).any():
            return point, None
        return point, point[:, None] + self.offsets[horizon_index, target_index]


def evaluate(  # noqa: PLR0913  what is there already need not be made again
    graph: Graph,
    series: Series,
    spans: Spans | None = None,
    *,
    season: int | None = None,
    split: Split | None = None,
    scales: dict[str, float] | None = None,
    replay: Replay | None = None,
    faulty: FaultyReplay | None = None,
    ridge: Ridge | None = None,
) -> Scores:
    """Replay the spans as new streams and score every forecast whose true value is known.

    A time gap ends a stream and opens a new one. A timestep counts if the model and all baselines have a forecast.

    Args:
        graph: to score.
        series: with the columns of the graph, in any order; it may have more.
        spans: the rows to replay; by default the held-out part of the split, or all rows. Baselines read rows before too.
        season: the season of the seasonal-naive baseline, in timesteps; by default a day, if the period is known.
        split: of this series, if the model was trained on it. Without it there are no fitted baselines.
        scales: the divisor of a MAE that gives the MASE, by target; for use without a split.
        replay: of the spans, if there is one already; then the series has exactly the columns of the graph.
        faulty: of the copies with faults, if there is one already.
        ridge: what `fit_ridge` gives for this split and season, if it is solved already.

    Raises:
        MissingColumn: the series lacks a feature of the graph.
        SeriesTooShort: no forecast can be scored within the rows.
    """
    if spans is None:
        spans = split.test if split else series.spans
    ordered = _ordered(series, graph.features)
    season = season or season_steps(series.period_s)
    replay = replay or Replay.of(graph, ordered, spans)
    if "probability" in replay.outputs:
        scores = _classes(graph, ordered, spans, replay, split)
    else:
        faulty = faulty or FaultyReplay.of(graph, ordered, spans, split, replay)
        scores = replace(
            _forecasts(graph, ordered, spans, replay, split=split, season=season, scales=scales or {}, ridge=ridge),
            anomaly=score_anomalies(graph, ordered, spans, split, replay, faulty) if faulty else None,
            anomaly_left_out=left_out(graph, ordered, spans, split, replay, faulty),
        )
    return replace(
        scores,
        data=series.name,
        start=series.stamp(min(series.times[first] for first, _ in spans).astype("datetime64[s]")),
        end=series.stamp(max(series.times[end - 1] for _, end in spans).astype("datetime64[s]")),
        rows=count_rows(spans),
        absent=absence(ordered, spans),
    )


def _classes(graph: Graph, series: Series, spans: Spans, replay: Replay, split: Split | None) -> Scores:
    """The sections of a classification."""
    classes, probability = graph.targets, replay.outputs["probability"]
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
    replay: Replay,
    *,
    split: Split | None,
    season: int | None,
    scales: dict[str, float],
    ridge: Ridge | None,
) -> Scores:
    """The sections of a forecast, without the anomalies."""
    outputs = replay.outputs
    targets, horizons = [series.column(name) for name in graph.targets], graph.horizons
    truth = future_values(series, targets, horizons, spans)
    scales = _scales(graph, series, split, season) if split else scales
    forecasts = {"model": Forecasts(outputs["forecast"], outputs.get("quantiles"))}
    forecasts |= _baselines(series, targets, graph, spans, season, split, ridge)
    names = [(target, horizon) for target in graph.targets for horizon in horizons]
    table = tuple(
        _score(graph, truth, forecasts, outputs.get("interval"), target_index, horizon_index, series.name, scales)
        for target_index in range(len(targets))
        for horizon_index in range(len(horizons))
    )
    return Scores(
        season=season,
        table=table,
        missing_baselines=_missing_baselines(table, set(forecasts), split, season),
        mase_scale=scales,
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
    """The mean absolute error of the naive forecast on the training part, by target; seasonal if possible."""
    segments = series.segments(split.train)
    scales = {}
    for name in graph.targets:
        values = series.values[:, series.column(name)]
        scale = (metrics.naive_scale(values, segments, season) if season else None) or metrics.naive_scale(
            values, segments, 1
        )
        if scale is not None:
            scales[name] = scale
    return scales


def _baselines(
    series: Series,
    targets: Sequence[int],
    graph: Graph,
    spans: Spans,
    season: int | None,
    split: Split | None,
    ridge: Ridge | None,
) -> dict[str, Forecasts]:
    """The baselines, with quantiles of constant width from the validation part, if there is one."""
    horizons, levels = graph.horizons, graph.quantiles
    if split:
        ridge = ridge or fit_ridge(series, split, targets, horizons, season=season)
    baselines: dict[str, Callable[[Spans], Floats]] = {"persistence": partial(persistence, series, targets, horizons)}
    if season:
        baselines["seasonal_naive"] = partial(seasonal_naive, series, targets, horizons, season=season)
    if ridge:
        baselines["ridge"] = partial(ridge.forecast, series)
    offsets: dict[str, Doubles] = {}
    if split and levels:
        truth = future_values(series, targets, horizons, split.validation)
        offsets = {
            name: residual_quantiles(forecast(split.validation), truth, levels) for name, forecast in baselines.items()
        }
    return {name: Forecasts(forecast(spans), offsets=offsets.get(name)) for name, forecast in baselines.items()}


def _missing_baselines(
    table: Sequence[Score], forecasting: set[str], split: Split | None, season: int | None
) -> dict[str, str]:
    """Why a baseline is not in every row of the table, by its name: a model that is not compared has not won."""
    why = {
        "seasonal_naive": None if season else "no season is known, and --season names one",
        "ridge": None if split else "this data lacks the rows that the model was trained on",
    }
    missing = {}
    for name, reason in why.items():
        absent = sum(name not in score.baselines for score in table)
        if not absent:
            continue
        dropped = f"it forecasts less than half of the timesteps in {absent} of {len(table)} forecasts"
        no_truth = "a horizon has no true value in the training part or in the validation part"
        missing[name] = dropped if name in forecasting else reason or no_truth
    return missing


def _score(
    graph: Graph,
    truth: Floats,
    forecasts: dict[str, Forecasts],
    interval: Floats | None,
    target_index: int,
    horizon_index: int,
    data: str,
    scales: dict[str, float],
) -> Score:
    """The score of one target and horizon."""
    target, horizon = graph.targets[target_index], graph.horizons[horizon_index]
    true = truth[:, horizon_index, target_index].astype(np.float64)
    points = {
        name: forecast.point[:, horizon_index, target_index].astype(np.float64) for name, forecast in forecasts.items()
    }
    required = ~np.isnan(true + points["model"] + points["persistence"])
    forecasts = {
        name: forecast
        for name, forecast in forecasts.items()
        if (~np.isnan(points[name][required])).sum() >= MIN_SHARE * required.sum()
    }
    known = ~np.isnan(true + sum(points[name] for name in forecasts))
    if not known.any():
        raise SeriesTooShort(
            f"{data}: no forecast of {target!r} {horizon} steps ahead can be scored on {len(truth)} rows; give more rows"
        )
    scored = {
        name: _error(true[known], forecast.at(horizon_index, target_index, known), graph.quantiles, scales.get(target))
        for name, forecast in forecasts.items()
    }
    period_s = graph.description["period_s"]
    return Score(
        target=target,
        unit=graph.units[target_index],
        horizon=horizon,
        horizon_s=None if period_s is None else horizon * period_s,
        count=int(known.sum()),
        model=scored["model"],
        persistence=scored["persistence"],
        seasonal_naive=scored.get("seasonal_naive"),
        ridge=scored.get("ridge"),
        interval=None
        if interval is None
        else _interval(graph, interval[known, horizon_index, target_index], true[known]),
    )


def _error(
    truth: Doubles, forecast: tuple[Doubles, Doubles | None], levels: Sequence[float], scale: float | None
) -> Error:
    """The errors of one model or baseline: true values (n,), point forecasts (n,) and quantiles (n, levels)."""
    point, quantiles = forecast
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
    """The score of the output `interval` (n, 2)."""
    share, width = metrics.coverage_and_width(truth, *interval.astype(np.float64).T)
    return Interval(graph.output("interval").get("coverage"), share, width)
