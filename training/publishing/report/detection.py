"""Sections of the report: classes, anomalies, and how long a new stream needs."""

from collections.abc import Callable, Sequence

import numpy as np

from tidegate.training.judging.detection import FaultyReplay
from tidegate.training.publishing import charts
from tidegate.training.publishing.charts import Plot, responsive
from tidegate.training.publishing.page import Html, figure, grid, section, table
from tidegate.training.publishing.report.content import Json, ReportContent
from tidegate.training.publishing.report.formats import number, percent, stacked


def classes(content: ReportContent) -> Html:
    """Scores of a classification, and its confusion matrix."""
    scores = content.card["scores"].get("classification")
    if not scores:
        return Html()
    measures = (
        ("accuracy", "accuracy", percent),
        ("macro F1", "macro_f1", number),
        ("cross-entropy", "cross_entropy", number),
        ("perplexity", "perplexity", number),
        ("recordings whose class is right", "recording_accuracy", percent),
        ("cross-entropy, mean of recordings", "recording_cross_entropy", number),
    )
    columns = [("model", "model"), ("frequencies", "class frequencies"), ("linear", "linear classifier")]
    columns = [(key, name) for key, name in columns if scores.get(key)]
    body = [[name, *(show(scores[column][key]) for column, _ in columns)] for name, key, show in measures]
    chart = charts.matrix("confusion matrix", scores["classes"], scores["confusion"])
    counted = f"{scores['count']:,} labelled timesteps of {scores['recordings']:,} recordings"
    how = (
        "Accuracy and F1: higher is better; cross-entropy and perplexity: lower. In the matrix a row is the true class and a "
        "column the predicted one; the darker a square, the larger its share of the row, and blue is right."
    )
    return section(
        "Classes", how, table(["", *(name for _, name in columns)], body, counted), figure("Confusion matrix", chart)
    )


def anomalies(content: ReportContent) -> Html:
    """Faults that were found, false alarms, and the score over a copy with faults."""
    scores, faulty, parts = content.card["scores"].get("anomaly"), content.faulty, []
    if scores:
        detectors = [(key, name) for key, name in (("model", "model"), ("pca", "PCA")) if scores.get(key)]
        found = [
            [kind["kind"], *(_found(scores[key]["kinds"][index]) for key, _ in detectors)]
            for index, kind in enumerate(scores["model"]["kinds"])
        ]
        measures = (
            ("false alarms", "false_alarms", number),
            ("precision", "precision", percent),
            ("recall", "recall", percent),
            ("F1 of events", "f1", number),
            ("area under precision and recall", "auc_pr", number),
            ("alarms a day on clean data", "clean_alarms_a_day", number),
            ("share of clean timesteps with an alarm", "clean_share", percent),
        )
        body = [["all faults", *(_found(scores[key]) for key, _ in detectors)], *found]
        body.append(
            ["before they were over", *(f"{scores[key]['during']} of {scores[key]['events']}" for key, _ in detectors)]
        )
        body += [[name, *(show(scores[column][key]) for column, _ in detectors)] for name, key, show in measures]
        parts.append(table(["faults found", *(name for _, name in detectors)], body))
    if faulty is not None:
        parts.append(figure("Score and alarms, with injected faults", responsive(_score_chart(faulty))))
    how = (
        "Sensor faults were injected into the held-out part by seed. Below a number of found faults is the median delay in "
        "timesteps. In the chart the highest score is 1, a shaded span is a fault, and a red dot an "
        "alarm: a dot outside the shade is a false alarm, shade without a dot a fault that was missed."
    )
    return section("Anomalies", how, *parts)


def _score_chart(faulty: FaultyReplay) -> Callable[[int], str]:
    outputs, events = faulty.drawn()
    # The place, not the time, so that the gaps between groups take no room.
    places = np.arange(len(outputs["score"]))
    score, warm = outputs["score"][:, 0], outputs["warm"][:, 0] > 0.5
    alarm = (outputs["alarm"][:, 0] > 0.5) & warm  # as they are scored

    def draw(width: int) -> str:
        # One point for each pixel, the highest of its timesteps, so that no spike is lost.
        size = max(len(score) // width, 1)
        firsts = places[::size]
        highest = np.maximum.reduceat(score, firsts) if len(score) else score
        marks = tuple((place / 2, f"{place / 2:g}") for place in range(3))
        across = charts.linear(places, "timestep", zero=True, ticks=6 if width > charts.NARROW else 3)
        plot = Plot("anomaly score", across, charts.Scale(-0.1, 1, marks, "score"), width=width, height=190)
        plot.spans([(event.first, event.end) for event in events], "fault")
        plot.line(firsts, highest, "a")
        plot.dots(places[alarm], np.full(int(alarm.sum()), -0.05), "b", 2.0)
        return plot.svg()

    return draw


def _found(scores: Json) -> str:
    """The number of faults found, and below it the median delay."""
    delay = f"after {number(scores['delay'])}" if scores["delay"] is not None else ""
    return stacked(f"{scores['found']} of {scores['events']}", delay)


def cold_start(content: ReportContent) -> Html:
    """Errors of a new stream by its age, beside those of a long one."""
    scores = content.card["scores"].get("cold_start")
    if not scores:
        return Html()
    drawn = {
        (name, content.replay.horizons[index]) for _, name, _, horizons in content.shown() for index, *_ in horizons
    }
    units = {row["target"]: row["unit"] for row in content.table}
    parts = []
    for start in scores["table"]:
        forecast = start["target"] in units
        if forecast and (start["target"], start["horizon"]) not in drawn:
            continue
        name = (
            f"{start['target']}, {content.horizon_text(start['horizon'])} ahead"
            if forecast
            else "Share of wrong classes"
        )
        settled = start["settled"]
        note = f"as good after {settled:,} timesteps" if settled is not None else "not as good within these timesteps"
        unit = units.get(start["target"], "")
        parts.append(figure(name, _start_chart(name, unit, scores["steps"], start["cold"], start["warm"]), note))
    how = (
        f"Errors of {scores['streams']:,} new streams all over the held-out part, by their number of timesteps, beside those of "
        f"a long stream on the same timesteps. As good: within "
        f"{100 * scores['tolerance']:g} %."
    )
    return section("A new stream", how, grid(*parts))


def _start_chart(name: str, unit: str, steps: Sequence[int], cold: Sequence[float], warm: Sequence[float]) -> str:
    scale = charts.linear([*cold, *warm], unit, zero=True, ticks=4)
    plot = Plot(f"{name}: cold start", charts.logarithmic(steps, "step"), scale, height=170, names=("new", "long"))
    for errors, kind in ((warm, "e"), (cold, "a")):
        plot.line(steps, errors, kind)
        plot.dots(steps, errors, kind)
    plot.name([(cold[-1], "new", "a"), (warm[-1], "long", "e")])
    return plot.svg()
