"""Scores a model as it is served: the exported graph, timestep by timestep, with its state carried.

This module knows no torch. It scores the file, through onnxruntime, beside the baselines and on the same timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidegate.training.data.future import FutureValues
from tidegate.training.data.gaps import absence
from tidegate.training.data.series import Floats, Ints, Series, Spans, count_rows, season_steps
from tidegate.training.data.split import Split
from tidegate.training.errors import MissingColumn, SeriesTooShort
from tidegate.training.judging import metrics
from tidegate.training.judging.baselines import Baseline, Persistence, SeasonalNaive, residual_quantiles
from tidegate.training.judging.classification import labels_of, score_classes
from tidegate.training.judging.cold_start import NewStreams, class_errors, forecast_errors
from tidegate.training.judging.detection import FaultyReplay, left_out, score_anomalies
from tidegate.training.judging.forecast_sums import ForecastSums
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.least_squares import row_indices
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.ridge import Ridge, RidgeForecasts, fit_ridge
from tidegate.training.judging.scores import Score, Scores


@dataclass(frozen=True)
class Judged:
    """The scores of a graph, and what a report draws of its replays."""

    scores: Scores
    replay: Replay
    faulty: FaultyReplay | None


def evaluate(
    graph: Graph,
    series: Series,
    spans: Spans | None = None,
    *,
    season: int | None = None,
    split: Split | None = None,
    scales: dict[str, float] | None = None,
    ridge: Ridge | None = None,
) -> Scores:
    """The scores of `judge`."""
    return judge(graph, series, spans, season=season, split=split, scales=scales, ridge=ridge).scores


def judge(
    graph: Graph,
    series: Series,
    spans: Spans | None = None,
    *,
    season: int | None = None,
    split: Split | None = None,
    scales: dict[str, float] | None = None,
    ridge: Ridge | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Judged:
    """Replay the spans as new streams and score every forecast whose true value is known.

    A time gap ends a stream and opens a new one. A timestep counts if the model and all baselines have a forecast.

    Args:
        graph: to score.
        series: with the columns of the graph, in any order; it may have more.
        spans: the rows to replay; by default the held-out part of the split, or all rows. Baselines read rows before too.
        season: the season of the seasonal-naive baseline, in timesteps; by default a day, if the period is known.
        split: of this series, if the model was trained on it. Without it there are no fitted baselines.
        scales: the divisor of a MAE that gives the MASE, by target; for use without a split.
        ridge: what `fit_ridge` gives for this split and season, if it is solved already.
        on_note: called with a sentence on what is done now.

    Raises:
        MissingColumn: the series lacks a feature of the graph.
        SeriesTooShort: no forecast can be scored within the rows.
    """
    if spans is None:
        spans = split.test if split else series.spans
    ordered = _ordered(series, graph.features)
    season = season or season_steps(series.period_s)
    if "probability" in graph.outputs:
        on_note(f"replaying {count_rows(spans)} held-out timesteps through the graph, and scoring them")
        judged = _classes(graph, ordered, spans, split)
    else:
        on_note("fitting the baselines")
        forecasts = _Forecasts(graph, ordered, spans, split=split, season=season, scales=scales, ridge=ridge)
        on_note(f"replaying {count_rows(spans)} held-out timesteps through the graph, and scoring them")
        judged = forecasts.judge()
    scores = replace(
        judged.scores,
        data=series.name,
        start=series.stamp(min(series.times[first] for first, _ in spans).astype("datetime64[s]")),
        end=series.stamp(max(series.times[end - 1] for _, end in spans).astype("datetime64[s]")),
        rows=count_rows(spans),
        absent=absence(ordered, spans),
    )
    return replace(judged, scores=scores)


def _classes(graph: Graph, series: Series, spans: Spans, split: Split | None) -> Judged:
    """The sections of a classification."""
    classes = graph.targets
    labels = labels_of(series, classes)
    series = replace(series, labels=labels, classes=tuple(classes))
    replay = Replay.of(graph, series, spans)
    probability = replay.outputs["probability"]
    streams = NewStreams.within(series, spans, [("class", 0)])
    if streams:
        streams.add_long(np.arange(len(probability)), class_errors(probability, labels[row_indices(spans)]))
    scores = Scores(
        classification=score_classes(series, classes, spans, probability, split),
        cold_start=streams.replay(graph, series, "probability", lambda rows, output: class_errors(output, labels[rows]))
        if streams
        else None,
    )
    return Judged(scores, replay, None)


class _Forecasts:
    """The forecasts of a graph and of the baselines, scored while the graph runs."""

    def __init__(
        self,
        graph: Graph,
        series: Series,
        spans: Spans,
        *,
        split: Split | None,
        season: int | None,
        scales: dict[str, float] | None,
        ridge: Ridge | None,
    ) -> None:
        self.graph, self.series, self.spans, self.split, self.season = graph, series, spans, split, season
        targets = [series.column(name) for name in graph.targets]
        self.scales = _scales(graph, series, split, season) if split else scales or {}
        self.truth = FutureValues(series, targets, graph.horizons, spans)
        self.rows = row_indices(spans)
        self.baselines = _baselines(series, targets, graph, season, split, ridge)
        offsets = _offsets(self.baselines, series, targets, graph, split) if split else {}
        self.sums = ForecastSums(self.truth.shape, self.baselines, offsets, graph.quantiles)
        names = [(target, horizon) for target in graph.targets for horizon in graph.horizons]
        self.new_streams = NewStreams.within(series, spans, names)

    def judge(self) -> Judged:
        """Replay and score."""
        graph, series, spans, split = self.graph, self.series, self.spans, self.split
        replay = Replay.of(graph, series, spans, drawn=True, on_rows=self._add)
        table = tuple(
            self._score(target, horizon, len(replay.times))
            for target in range(len(graph.targets))
            for horizon in range(len(graph.horizons))
        )
        faulty = FaultyReplay.of(graph, series, spans, split, replay)
        scores = Scores(
            season=self.season,
            table=table,
            missing_baselines=_missing_baselines(table, set(self.baselines), split, self.season),
            mase_scale=self.scales,
            cold_start=self.new_streams.replay(graph, series, "forecast", self._errors) if self.new_streams else None,
            anomaly=score_anomalies(graph, series, spans, split, replay, faulty) if faulty else None,
            anomaly_left_out=left_out(graph, series, spans, split, replay, faulty),
        )
        return Judged(scores, replay, faulty)

    def _add(self, positions: Ints, outputs: dict[str, Floats]) -> None:
        """Add rows of the spans."""
        rows = self.rows[positions]
        truth = self.truth.at(rows)
        self.sums.add(rows, truth, outputs)
        if self.new_streams:
            self.new_streams.add_long(positions, forecast_errors(outputs["forecast"], truth))

    def _errors(self, rows: Ints, forecast: Floats) -> metrics.Doubles:
        """The absolute errors of forecasts at these rows."""
        return forecast_errors(forecast, self.truth.at(rows))

    def _score(self, target_index: int, horizon_index: int, rows: int) -> Score:
        """The score of one target and horizon."""
        graph = self.graph
        target, horizon = graph.targets[target_index], graph.horizons[horizon_index]
        nominal = graph.output("interval").get("coverage") if "interval" in graph.outputs else None
        summed = self.sums.at(horizon_index, target_index, self.scales.get(target), nominal)
        if summed is None:
            raise SeriesTooShort(
                f"{self.series.name}: no forecast of {target!r} {horizon} steps ahead can be scored on {rows} rows; give more "
                f"rows"
            )
        period_s = graph.description["period_s"]
        return Score(
            target=target,
            unit=graph.units[target_index],
            horizon=horizon,
            horizon_s=None if period_s is None else horizon * period_s,
            count=summed.count,
            model=summed.errors["model"],
            persistence=summed.errors["persistence"],
            seasonal_naive=summed.errors.get("seasonal_naive"),
            ridge=summed.errors.get("ridge"),
            interval=summed.interval if "interval" in graph.outputs else None,
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
    season: int | None,
    split: Split | None,
    ridge: Ridge | None,
) -> dict[str, Baseline]:
    """The baselines by name."""
    horizons = graph.horizons
    if split:
        ridge = ridge or fit_ridge(series, split, targets, horizons, season=season)
    baselines: dict[str, Baseline] = {"persistence": Persistence(series, targets, horizons)}
    if season:
        baselines["seasonal_naive"] = SeasonalNaive(series, targets, horizons, season)
    if ridge:
        baselines["ridge"] = RidgeForecasts(ridge, series)
    return baselines


def _offsets(
    baselines: dict[str, Baseline], series: Series, targets: Sequence[int], graph: Graph, split: Split
) -> dict[str, metrics.Doubles]:
    """The quantiles of constant width of the baselines, from the validation part: (horizons, targets, levels) by name."""
    if not graph.quantiles:
        return {}
    truth = FutureValues(series, targets, graph.horizons, split.validation)
    rows = row_indices(split.validation)
    return {name: residual_quantiles(part, truth, rows, graph.quantiles) for name, part in baselines.items()}


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
