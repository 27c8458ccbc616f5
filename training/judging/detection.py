"""Scores of the alarm: faults are injected into copies of the held-out part, and the graph has to find them.

The baseline is PCA. A detector with more alarms finds more, so the threshold of PCA is set to raise as many bursts of
alarms on the clean part as the graph. This threshold is fitted on the held-out part itself, which favours PCA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidegate.training.data.series import DAY_S, Floats, Group, Series, Span, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging import metrics
from tidegate.training.judging.events import bursts, event_labels, match_alarms
from tidegate.training.judging.faults import FAULT_SPECS, KINDS, REST_STEPS, Event, FeatureMoments, inject
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.metrics import Bools
from tidegate.training.judging.pca import fit_pca
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.scores import AnomalyScores, Detection, Kind

# An alarm this many timesteps after the end of a fault still belongs to the fault.
TOLERANCE = 6
# The number of faults. With 240 the share that is found is known to within 6 %, at 95 % confidence.
EVENTS = 240
# The most copies of a short part; copies share their clean values.
MAX_COPIES = 16
# Timesteps of a copy with faults that are drawn: with more, a fault is narrower than a pixel.
DRAWN_STEPS = 4000
# Thresholds tried for PCA.
THRESHOLDS = 400


@dataclass(frozen=True)
class FaultyCopies:
    """Copies of segments with injected faults, as groups of a series."""

    series: Series
    events: tuple[tuple[Event, ...], ...]  # of each group, in its own rows
    copies: int


@dataclass(frozen=True)
class FaultyReplay:
    """Copies of the held-out part with injected faults, and the outputs (rows, ...) of the graph for them."""

    faults: FaultyCopies
    outputs: dict[str, Floats]

    @classmethod
    def of(
        cls,
        graph: Graph,
        series: Series,
        spans: Spans,
        split: Split | None,
        replay: Replay,
        *,
        first_only: bool = False,
    ) -> "FaultyReplay | None":
        """Inject faults into copies of the spans, and replay all copies, or the first one only.

        Args:
            graph: with the outputs `alarm`, `score` and `warm`; without them the result is None.
            series: with the columns of the graph.
            spans: the held-out rows.
            split: of the series. Without it the moments are those of the held-out rows.
            replay: of the clean spans.
            first_only: replay only what `drawn` returns.

        Returns:
            None if no stream is warm for long enough to hold a fault.
        """
        if "alarm" not in graph.outputs:
            return None
        segments = series.segments(spans)
        outputs = _detector_outputs(replay.outputs, segments)
        faults = inject_into_copies(
            series,
            segments if any(output.warm.any() for output in outputs) else [],
            FeatureMoments.of(series, split.train if split else spans),
            columns=[series.column(name) for name in graph.targets],
            warm=_first_warm(outputs) + REST_STEPS,
        )
        if faults is None:
            return None
        copies = faults.series.spans
        if first_only:
            first, end = copies[0]
            copies = ((first, min(end, first + DRAWN_STEPS)),)
        return cls(faults, graph.replay_segments(faults.series.values, copies, keep=("alarm", "score", "warm")))

    def drawn(self) -> tuple[dict[str, Floats], tuple[Event, ...]]:
        """The outputs and the events of the first copy, up to `DRAWN_STEPS` timesteps."""
        first, end = self.faults.series.spans[0]
        length = min(end - first, DRAWN_STEPS)
        events = tuple(event for event in self.faults.events[0] if event.first < length)
        return {name: output[:length] for name, output in self.outputs.items()}, events


@dataclass(frozen=True)
class DetectorOutput:
    """The outputs of a detector for one stream: `alarm`, `score` and `warm`, each (time,)."""

    alarm: Bools
    score: Floats
    warm: Bools


def score_anomalies(
    graph: Graph, series: Series, spans: Spans, split: Split | None, replay: Replay, faulty: FaultyReplay
) -> AnomalyScores:
    """Score the alarms.

    Args:
        graph: with the output `score`.
        series: with the columns of the graph.
        spans: the held-out rows.
        split: of the series; without it PCA is left out.
        replay: of the clean spans.
        faulty: of the copies with faults.
    """
    segments, copies = series.segments(spans), faulty.faults.series.spans
    clean, broken = _detector_outputs(replay.outputs, segments), _detector_outputs(faulty.outputs, copies)
    events = faulty.faults.events
    model = _detection(broken, events, clean, series.period_s)
    pca = None
    if split:
        detector = fit_pca(series, split)
        scores = (
            _cut(detector.score(series, spans), segments),
            _cut(detector.score(faulty.faults.series, copies), copies),
        )
        threshold = matching_threshold(model.clean_alarms, scores[0], [output.warm for output in clean])
        pca_clean, pca_broken = (
            [
                DetectorOutput((score > threshold) & output.warm, score, output.warm)
                for score, output in zip(part, outputs, strict=True)
            ]
            for part, outputs in zip(scores, (clean, broken), strict=True)
        )
        pca = _detection(pca_broken, events, pca_clean, series.period_s)
    return AnomalyScores(
        copies=faulty.faults.copies,
        tolerance=TOLERANCE,
        columns=tuple(graph.targets),
        alarm_rate=graph.output("score").get("alarm_rate"),
        model=model,
        pca=pca,
    )


def left_out(
    graph: Graph, series: Series, spans: Spans, split: Split | None, replay: Replay, faulty: FaultyReplay | None
) -> str | None:
    """What the scores of the alarm leave out and why, in sentences; None: nothing, or there is no alarm.

    The arguments are those of `score_anomalies`; `faulty` is None where no fault could be injected.
    """
    if "alarm" not in graph.outputs:
        return None
    segments = series.segments(spans)
    clean = _detector_outputs(replay.outputs, segments)
    if faulty is None:
        return f"{_why_no_faults(series, segments, clean)} {_clean_share(graph, clean)}"
    sentences = []
    injected = {event.kind for events in faulty.faults.events for event in events}
    missing = [kind for kind in KINDS if kind not in injected]
    if missing:
        longest = max(end - first for first, end in segments)
        slow = max(FAULT_SPECS[kind].length(series.period_s) for kind in missing)
        why = (
            f"there is no room for them in held-out stretches of up to {longest} timesteps"
            if slow + REST_STEPS > longest - _first_warm(clean) - REST_STEPS
            else "no forecast column would show them"
        )
        sentences.append(f"Faults that were not tried, because {why}: {', '.join(missing)}.")
    used = len(faulty.faults.series.groups) // faulty.faults.copies
    if used < len(segments):
        sentences.append(
            f"{len(segments) - used} of {len(segments)} held-out stretches got no faults: they are too short, or others "
            f"have enough."
        )
    if split is None:
        sentences.append("PCA is not compared: the rows that the model learned from are not at hand.")
    return " ".join(sentences) or None


def _why_no_faults(series: Series, segments: Sequence[Span], clean: Sequence[DetectorOutput]) -> str:
    longest = max(end - first for first, end in segments)
    least = min(spec.length(series.period_s) for spec in FAULT_SPECS.values())
    text = f"No injected faults were scored: the longest held-out stretch has {longest} timesteps"
    if not any(output.warm.any() for output in clean):
        return f"{text}, and the alarm is not warm by then; hold out more rows, or set --alarm-warm-up."
    needed = _first_warm(clean) + 2 * REST_STEPS + least
    if longest < needed:
        return f"{text}, and a fault needs {needed} with the warm-up and the rest around it; hold out more rows."
    return "No injected faults were scored: no forecast column would show one."


def _first_warm(clean: Sequence[DetectorOutput]) -> int:
    """The timesteps before the last stream is warm."""
    return max((int(output.warm.argmax()) for output in clean if output.warm.any()), default=0)


def _clean_share(graph: Graph, clean: Sequence[DetectorOutput]) -> str:
    """The alarms on the clean part, where there is nothing else to tell."""
    warm = sum(int(output.warm.sum()) for output in clean)
    if not warm:
        return "So the rate of its alarms is not known either."
    share, stated = sum(int(output.alarm.sum()) for output in clean) / warm, graph.output("score").get("alarm_rate")
    text = f"Of {warm} clean timesteps {100 * share:.2g} % have an alarm"
    return f"{text}." if stated is None else f"{text}; {100 * stated:.2g} % was asked for."


def inject_into_copies(
    series: Series, segments: Sequence[Span], moments: FeatureMoments, *, columns: Sequence[int], warm: int
) -> FaultyCopies | None:
    """Copy the segments until there is room for `EVENTS` faults, and inject them; each copy has its own seed.

    Each segment gets faults in proportion to its length after the first `warm` timesteps, which stay clean. Returns None if
    there is no room.
    """
    lengths = [spec.length(series.period_s) for spec in FAULT_SPECS.values()]
    mean_length = REST_STEPS + sum(lengths) // len(KINDS)
    room = np.array([max(end - first - warm, 0) for first, end in segments], np.int64)
    # Where no mean fault fits there may be room for a short one.
    capacity = np.where(room >= REST_STEPS + min(lengths), np.maximum(room // mean_length, 1), 0)
    if not capacity.sum():
        return None
    copies = int(np.clip(-(-EVENTS // capacity.sum()), 1, MAX_COPIES))
    cumulative = np.concatenate([[0], np.cumsum(capacity)]) * min(1.0, EVENTS / (copies * capacity.sum()))
    counts = np.diff(np.round(cumulative)).astype(np.int64)
    parts: list[Floats] = []
    events: list[tuple[Event, ...]] = []
    sources: list[Span] = []
    for copy in range(copies):
        for place, (first, end) in enumerate(segments):
            if counts[place]:
                values, faults = inject(
                    series.values[first:end],
                    moments,
                    columns=columns,
                    count=int(counts[place]),
                    seed=copy * len(segments) + place,
                    warm=warm,
                    period_s=series.period_s,
                )
                parts.append(values)
                events.append(faults)
                sources.append((first, end))
    if not any(events):
        return None
    ends = np.cumsum([len(part) for part in parts])
    groups = tuple(Group(str(place), int(end) - len(parts[place]), int(end)) for place, end in enumerate(ends))
    times = np.concatenate([series.times[first:end] for first, end in sources])
    copied = replace(series, values=np.concatenate(parts), times=times, groups=groups, labels=None, classes=())
    return FaultyCopies(copied, tuple(events), copies)


def matching_threshold(alarms: int, scores: Sequence[Floats], warm: Sequence[Bools]) -> float:
    """The lowest threshold, going down from the highest score, with at most `alarms` bursts of alarms."""
    ranked = np.sort(np.concatenate([score[known] for score, known in zip(scores, warm, strict=True)]))[::-1]
    places = np.unique(np.geomspace(1, len(ranked), THRESHOLDS).astype(np.int64)) - 1
    lowest = float(ranked[0])
    for threshold in ranked[places]:
        found = sum(len(bursts((score > threshold) & known)) for score, known in zip(scores, warm, strict=True))
        if found > alarms:
            break
        lowest = float(threshold)
    return lowest


def _detector_outputs(outputs: dict[str, Floats], spans: Spans | Sequence[Span]) -> list[DetectorOutput]:
    """The outputs of each stream of the spans, which are concatenated; an alarm counts only after the stream is warm."""
    parts = (_cut(outputs[name].reshape(len(outputs[name]), -1)[:, 0], spans) for name in ("alarm", "score", "warm"))
    return [
        DetectorOutput((alarm > 0.5) & (warm > 0.5), score, warm > 0.5)
        for alarm, score, warm in zip(*parts, strict=True)
    ]


def _cut(values: Floats, spans: Spans | Sequence[Span]) -> list[Floats]:
    """(rows of the spans, ...) as one array for each span."""
    return np.split(values, np.cumsum([end - first for first, end in spans])[:-1])


def _detection(
    faulty_outputs: Sequence[DetectorOutput],
    events: Sequence[Sequence[Event]],
    clean: Sequence[DetectorOutput],
    period_s: float | None,
) -> Detection:
    """The scores of one detector."""
    found = [
        match_alarms(output.alarm, faults, tolerance=TOLERANCE)
        for output, faults in zip(faulty_outputs, events, strict=True)
    ]
    delays = [
        (event.kind, delay)
        for faults, part in zip(events, found, strict=True)
        for event, delay in zip(faults, part.delays, strict=True)
    ]
    hits = [delay for _, delay in delays if delay is not None]
    false = sum(part.false_alarms for part in found)
    alarms = sum(len(bursts(output.alarm)) for output in clean)
    warm = sum(int(output.warm.sum()) for output in clean)
    return Detection(
        found=len(hits),
        during=sum(sum(part.during) for part in found),
        events=len(delays),
        false_alarms=false,
        precision=len(hits) / (len(hits) + false) if len(hits) + false else None,
        recall=len(hits) / len(delays),
        f1=2 * len(hits) / (len(hits) + false + len(delays)),
        auc_pr=_auc(faulty_outputs, events),
        delay=float(np.median(hits)) if hits else None,
        clean_alarms=alarms,
        clean_alarms_a_day=None if period_s is None else alarms * DAY_S / (warm * period_s),
        clean_share=sum(int(output.alarm.sum()) for output in clean) / warm,
        kinds=tuple(_kind(kind, [delay for each, delay in delays if each == kind]) for kind in KINDS),
    )


def _kind(kind: str, delays: Sequence[int | None]) -> Kind:
    hits = [delay for delay in delays if delay is not None]
    return Kind(kind, len(hits), len(delays), float(np.median(hits)) if hits else None)


def _auc(outputs: Sequence[DetectorOutput], events: Sequence[Sequence[Event]]) -> float:
    """The average precision of the score over all warm timesteps, except those just after a fault."""
    labels, scores = [], []
    for output, faults in zip(outputs, events, strict=True):
        faulty, counts = event_labels(faults, len(output.score), tolerance=TOLERANCE)
        counts &= output.warm
        labels.append(faulty[counts])
        scores.append(output.score[counts])
    return metrics.average_precision(np.concatenate(labels), np.concatenate(scores))
