"""Sections of the report: classes, anomalies, and how long a new stream needs."""

from collections.abc import Callable, Sequence

import numpy as np

from training.publishing import charts
from training.publishing.charts import Plot, both
from training.publishing.curves import Faulted
from training.publishing.page import Html, figure, grid, section, table
from training.publishing.report.material import Json, Material
from training.publishing.report.words import number, percent, stacked


def classes(material: Material) -> Html:
    """Scores of a classification, and its confusion matrix."""
    told = material.card["scores"].get("classification")
    if not told:
        return Html()
    measures = (
        ("accuracy", "accuracy", percent),
        ("macro F1", "macro_f1", number),
        ("cross-entropy", "cross_entropy", number),
        ("perplexity", "perplexity", number),
        ("accuracy, mean of recordings", "recording_accuracy", percent),
        ("cross-entropy, mean of recordings", "recording_cross_entropy", number),
    )
    columns = [("model", "model"), ("frequencies", "class frequencies"), ("linear", "linear classifier")]
    columns = [(key, name) for key, name in columns if told.get(key)]
    body = [[name, *(show(told[column][key]) for column, _ in columns)] for name, key, show in measures]
    chart = charts.matrix("confusion matrix", told["classes"], told["confusion"])
    counted = f"{told['count']:,} labelled timesteps of {told['recordings']:,} recordings"
    how = (
        "Accuracy and F1: higher is better; cross-entropy and perplexity: lower. In the matrix a row is what was true and a "
        "column what the model said; the darker a square, the larger its share of the row, and blue is right."
    )
    return section(
        "Classes", how, table(["", *(name for _, name in columns)], body, counted), figure("Confusion matrix", chart)
    )


def anomalies(material: Material) -> Html:
    """Faults that were found, false alarms, and the score over a stretch with faults."""
    told, faulted, parts = material.card["scores"].get("anomaly"), material.faulted, []
    if told:
        detectors = [(key, name) for key, name in (("model", "model"), ("pca", "PCA")) if told.get(key)]
        found = [
            [kind["kind"], *(_found(told[key]["kinds"][index]) for key, _ in detectors)]
            for index, kind in enumerate(told["model"]["kinds"])
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
        body = [["all faults", *(_found(told[key]) for key, _ in detectors)], *found]
        body.append(
            ["before they were over", *(f"{told[key]['during']} of {told[key]['events']}" for key, _ in detectors)]
        )
        body += [[name, *(show(told[column][key]) for column, _ in detectors)] for name, key, show in measures]
        parts.append(table(["faults found", *(name for _, name in detectors)], body))
    if faulted is not None:
        parts.append(figure("Score and alarms, with faults put in", both(_score_chart(faulted))))
    how = (
        "Faults of sensors were put into the held-out part by seed; below a number of found faults is the median delay in "
        "timesteps. In the chart the score is 1 where it is most unexpected, a shaded stretch is a fault, and a red dot an "
        "alarm: a dot outside the shade is a false alarm, shade without a dot a fault that was missed."
    )
    return section("Anomalies", how, *parts)


def _score_chart(faulted: Faulted) -> Callable[[int], str]:
    replayed = faulted.replayed
    # The place, not the time, so that the gaps between groups take no room.
    places = np.arange(len(replayed.times))
    score, warm = replayed.outputs["score"][:, 0], replayed.outputs["warm"][:, 0] > 0.5
    alarm = (replayed.outputs["alarm"][:, 0] > 0.5) & warm  # as they are scored

    def draw(width: int) -> str:
        # As many points as there are pixels, each the highest of its timesteps: a spike must not fall between two.
        size = max(len(score) // width, 1)
        firsts = places[::size]
        highest = np.maximum.reduceat(score, firsts) if len(score) else score
        marks = tuple((place / 2, f"{place / 2:g}") for place in range(3))
        across = charts.linear(places, "timestep", zero=True, ticks=6 if width > charts.NARROW else 3)
        plot = Plot("anomaly score", across, charts.Scale(-0.1, 1, marks, "score"), width=width, height=190)
        plot.spans([(event.first, event.end) for event in faulted.events], "fault")
        plot.line(firsts, highest, "a")
        plot.dots(places[alarm], np.full(int(alarm.sum()), -0.05), "b", 2.0)
        return plot.svg()

    return draw


def _found(told: Json) -> str:
    """How many of the faults, and below it the median delay."""
    delay = f"after {number(told['delay'])}" if told["delay"] is not None else ""
    return stacked(f"{told['found']} of {told['events']}", delay)


def cold_start(material: Material) -> Html:
    """Errors of a new stream by its age, beside those of a long one."""
    told = material.card["scores"].get("cold_start")
    if not told:
        return Html()
    drawn = {
        (name, material.replayed.horizons[index]) for _, name, _, horizons in material.shown() for index, *_ in horizons
    }
    units = {row["target"]: row["unit"] for row in material.table}
    parts = []
    for start in told["table"]:
        forecast = start["target"] in units
        if forecast and (start["target"], start["horizon"]) not in drawn:
            continue
        name = f"{start['target']}, {material.ahead(start['horizon'])} ahead" if forecast else "Share of wrong classes"
        settled = start["settled"]
        said = f"as good after {settled:,} timesteps" if settled is not None else "not as good within these timesteps"
        unit = units.get(start["target"], "")
        parts.append(figure(name, _start_chart(name, unit, told["steps"], start["cold"], start["warm"]), said))
    how = (
        f"Errors of {told['streams']:,} streams that were opened all over the held-out part, by how many timesteps they had "
        f"seen, beside those of a stream that has run for long, on the same timesteps. As good: within "
        f"{100 * told['tolerance']:g} %."
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
