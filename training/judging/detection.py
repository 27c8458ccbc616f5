"""Scores of a graph that raises alarms: faults are put into copies of the held-out part, and the graph has to find them.

Beside it stands PCA with the threshold at which it raises as many bursts of alarms on the clean part as the graph does: a
detector that may alarm more often finds more. That threshold is taken from the very part that judges, which favours PCA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.data.series import DAY_S, Floats, Group, Series, Span, Spans
from training.data.split import Split
from training.judging import metrics
from training.judging.events import bursts, find, labels_of
from training.judging.faults import KINDS, RECIPES, REST, Event, Moments, inject
from training.judging.graph import Graph
from training.judging.metrics import Bools
from training.judging.pca import fit_pca
from training.judging.scores import AnomalyScores, Detection, Kind

# Timesteps after a fault's beginning within which an alarm is still its own, and after its end in which none is false.
TOLERANCE = 6
# Faults wanted in all: with 240 the share that was found is known to within 6 %, at 95 % confidence.
EVENTS = 240
# A short part is copied so often at most; copies share their clean values.
MOST_COPIES = 16
# Thresholds tried for PCA.
THRESHOLDS = 400


@dataclass(frozen=True)
class Faulty:
    """Copies of stretches with faults in them, one after the other as groups of a series."""

    series: Series
    events: tuple[tuple[Event, ...], ...]  # of each group, in its own rows
    copies: int


@dataclass(frozen=True)
class Watch:
    """What a detector says of one stream: `alarm`, `score` and whether it is `warm`, each (time,)."""

    alarm: Bools
    score: Floats
    warm: Bools


def score_anomalies(
    graph: Graph, series: Series, spans: Spans, outputs: dict[str, Floats], split: Split | None
) -> AnomalyScores | None:
    """Judge the alarms.

    Args:
        graph: with the outputs `alarm`, `score` and `warm`.
        series: with the graph's columns.
        spans: the rows that judge.
        outputs: of the graph on the clean rows of the spans.
        split: of the series; without it the moments are those of the rows that judge, and PCA is left out.

    Returns:
        None when the graph is nowhere warm for long enough to put a single fault there.
    """
    stretches = series.stretches(spans)
    clean = _watches(outputs, stretches)
    beginnings = [int(watch.warm.argmax()) for watch in clean if watch.warm.any()]
    faulty = break_copies(
        series,
        stretches if beginnings else [],
        Moments.of(series, split.train if split else spans),
        columns=[series.column(name) for name in graph.targets],
        warm=max(beginnings, default=0) + REST,
    )
    if faulty is None:
        return None
    copied = faulty.series.spans
    broken = _watches(graph.replay_rows(faulty.series.values, copied, keep=("alarm", "score", "warm")), copied)
    model = _detection(broken, faulty.events, clean, series.period_s)
    pca = None
    if split:
        detector = fit_pca(series, split)
        scores = _cut(detector.score(series, spans), stretches), _cut(detector.score(faulty.series, copied), copied)
        threshold = threshold_for(model.clean_alarms, scores[0], [watch.warm for watch in clean])
        calm, excited = (
            [
                Watch((score > threshold) & watch.warm, score, watch.warm)
                for score, watch in zip(part, like, strict=True)
            ]
            for part, like in zip(scores, (clean, broken), strict=True)
        )
        pca = _detection(excited, faulty.events, calm, series.period_s)
    return AnomalyScores(
        copies=faulty.copies,
        tolerance=TOLERANCE,
        columns=tuple(graph.targets),
        alarm_rate=graph.output("score").get("alarm_rate"),
        model=model,
        pca=pca,
    )


def break_copies(
    series: Series, stretches: Sequence[Span], moments: Moments, *, columns: Sequence[int], warm: int
) -> Faulty | None:
    """Copy the stretches until there is room for `EVENTS` faults, and put them in; each copy has a seed of its own.

    Stretches share the faults by their length behind `warm`, the timesteps that stay clean. None when there is no room.
    """
    usual = REST + sum(recipe.steps for recipe in RECIPES.values()) // len(KINDS)  # timesteps that a fault takes
    rooms = np.array([max(end - first - warm, 0) // usual for first, end in stretches], np.int64)
    if not rooms.sum():
        return None
    copies = int(np.clip(-(-EVENTS // rooms.sum()), 1, MOST_COPIES))
    before = np.concatenate([[0], np.cumsum(rooms)]) * min(1.0, EVENTS / (copies * rooms.sum()))
    counts = np.diff(np.round(before)).astype(np.int64)
    parts: list[Floats] = []
    events: list[tuple[Event, ...]] = []
    sources: list[Span] = []
    for copy in range(copies):
        for place, (first, end) in enumerate(stretches):
            if counts[place]:
                values, faults = inject(
                    series.values[first:end],
                    moments,
                    columns=columns,
                    count=int(counts[place]),
                    seed=copy * len(stretches) + place,
                    warm=warm,
                )
                parts.append(values)
                events.append(faults)
                sources.append((first, end))
    if not any(events):
        return None
    ends = np.cumsum([len(part) for part in parts])
    groups = tuple(Group(str(place), int(end) - len(parts[place]), int(end)) for place, end in enumerate(ends))
    times = np.concatenate([series.times[first:end] for first, end in sources])
    broken = replace(series, values=np.concatenate(parts), times=times, groups=groups, labels=None, classes=())
    return Faulty(broken, tuple(events), copies)


def threshold_for(alarms: int, scores: Sequence[Floats], warm: Sequence[Bools]) -> float:
    """The lowest threshold at which, going down from the highest, there are no more bursts of alarms than that."""
    every = np.sort(np.concatenate([score[known] for score, known in zip(scores, warm, strict=True)]))[::-1]
    places = np.unique(np.geomspace(1, len(every), THRESHOLDS).astype(np.int64)) - 1
    lowest = float(every[0])
    for threshold in every[places]:
        raised = sum(len(bursts((score > threshold) & known)) for score, known in zip(scores, warm, strict=True))
        if raised > alarms:
            break
        lowest = float(threshold)
    return lowest


def _watches(outputs: dict[str, Floats], spans: Spans | Sequence[Span]) -> list[Watch]:
    """One for each stream of the spans, which lie end to end in the outputs; no alarm counts before it is warm."""
    parts = (_cut(outputs[name].reshape(len(outputs[name]), -1)[:, 0], spans) for name in ("alarm", "score", "warm"))
    return [Watch((alarm > 0.5) & (warm > 0.5), score, warm > 0.5) for alarm, score, warm in zip(*parts, strict=True)]


def _cut(values: Floats, spans: Spans | Sequence[Span]) -> list[Floats]:
    """(rows of the spans, ...) into one array a span."""
    return np.split(values, np.cumsum([end - first for first, end in spans])[:-1])


def _detection(
    broken: Sequence[Watch], events: Sequence[Sequence[Event]], clean: Sequence[Watch], period_s: float | None
) -> Detection:
    """Sum a detector up."""
    found = [find(watch.alarm, faults, tolerance=TOLERANCE) for watch, faults in zip(broken, events, strict=True)]
    delays = [
        (event.kind, delay)
        for faults, part in zip(events, found, strict=True)
        for event, delay in zip(faults, part.delays, strict=True)
    ]
    hits = [delay for _, delay in delays if delay is not None]
    false = sum(part.false_alarms for part in found)
    raised = sum(len(bursts(watch.alarm)) for watch in clean)
    warm = sum(int(watch.warm.sum()) for watch in clean)
    return Detection(
        found=len(hits),
        during=sum(sum(part.during) for part in found),
        events=len(delays),
        false_alarms=false,
        precision=len(hits) / (len(hits) + false) if len(hits) + false else None,
        recall=len(hits) / len(delays),
        f1=2 * len(hits) / (len(hits) + false + len(delays)),
        auc_pr=_auc(broken, events),
        delay=float(np.median(hits)) if hits else None,
        clean_alarms=raised,
        clean_alarms_a_day=None if period_s is None else raised * DAY_S / (warm * period_s),
        clean_share=sum(int(watch.alarm.sum()) for watch in clean) / warm,
        kinds=tuple(_kind(kind, [delay for each, delay in delays if each == kind]) for kind in KINDS),
    )


def _kind(kind: str, delays: Sequence[int | None]) -> Kind:
    hits = [delay for delay in delays if delay is not None]
    return Kind(kind, len(hits), len(delays), float(np.median(hits)) if hits else None)


def _auc(watches: Sequence[Watch], events: Sequence[Sequence[Event]]) -> float:
    """Average precision of the score over all warm timesteps but those just after a fault."""
    labels, scores = [], []
    for watch, faults in zip(watches, events, strict=True):
        faulty, counts = labels_of(faults, len(watch.score), tolerance=TOLERANCE)
        counts &= watch.warm
        labels.append(faulty[counts])
        scores.append(watch.score[counts])
    return metrics.average_precision(np.concatenate(labels), np.concatenate(scores))
