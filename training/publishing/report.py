"""The report of a version: one page that says what was learned, how good it is, and how to serve it.

All that it tells is in the card; all that it draws besides comes from one replay of the held-out part (`curves`). A section
is there when its data is. The same card and replay give the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from training.judging.verdict import NAMES, duration, joined
from training.publishing import charts, curves
from training.publishing.card import STOPPED
from training.publishing.charts import Plot, both
from training.publishing.curves import Faulted, Replayed
from training.publishing.page import Html, facts, figure, grid, page, section, table, tag

Json = dict[str, Any]

# More charts of one kind than this say no more, and a hundred targets would be a book.
SHOWN = 4
COLOURS = "abcd"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "peephole": "peephole LSTM", "peephole-previous": "peephole LSTM"}


@dataclass(frozen=True)
class Material:
    """What a report is made of."""

    card: Json
    replayed: Replayed
    faulted: Faulted | None = None

    @property
    def table(self) -> list[Json]:
        """The scores, a row for each target and horizon; empty where nothing is forecast."""
        return list(self.card["scores"].get("table", []))

    @property
    def forecasts(self) -> Json | None:
        """The description of the output `forecast`."""
        outputs = self.card["description"]["outputs"]
        return next((output for output in outputs if output["name"] == "forecast"), None)

    def ahead(self, horizon: int) -> str:
        """How far ahead, in words."""
        period_s = self.card["description"]["period_s"]
        return duration(horizon, None if period_s is None else horizon * period_s).replace(" ", "\u00a0")

    def shown(self) -> Iterator[tuple[int, str, str, list[tuple[int, str, str]]]]:
        """The first targets (place, name, unit), each with up to `SHOWN` horizons (place, name, colour) across the range."""
        described = self.forecasts
        if described is None:
            return
        horizons = described["horizons"]
        chosen = sorted({round(place) for place in np.linspace(0, len(horizons) - 1, SHOWN)})
        drawn = [(place, self.ahead(horizons[place]), COLOURS[index]) for index, place in enumerate(chosen)]
        names = zip(described["targets"], described["units"], strict=True)
        for place, (name, unit) in list(enumerate(names))[:SHOWN]:
            yield place, name, unit, drawn


def build(material: Material) -> str:
    """The page."""
    card = material.card
    return page(f"{card['name']}, version {card['version']}", *(part(material) for part in PARTS))


def _top(material: Material) -> Html:
    card = material.card
    data, held = card["data"], card["data"]["held_out"]
    wins = bool(card["scores"].get("beats_baselines"))
    rows = [
        ("data", data["name"]),
        ("learned from", f"{_day(data['training']['start'])} to {_day(data['training']['end'])}"),
        ("judged on", f"{_day(held['start'])} to {_day(held['end'])}, {held['rows']:,} timesteps that it has not seen"),
        (
            "made",
            f"{card['created'][:16].replace('T', ' ')} UTC, in {_duration(card['outcome']['seconds'])} of training",
        ),
        ("parameters", f"{card['parameters']:,}"),
        ("licence of the data", data.get("licence", "not stated")),
        ("source of the data", data.get("source", f"{card['source']['data'].rsplit('/', maxsplit=1)[-1]}")),
    ]
    return tag(
        "header",
        tag("p", "Report of a model", kind="kicker"),
        tag("h1", f"{card['name']}, version {card['version']}"),
        tag("p", _learned(material), kind="lead"),
        tag("p", card["verdict"], kind="verdict" if wins else "verdict fails"),
        facts(rows),
    )


def _learned(material: Material) -> str:
    """What the model does, in a sentence."""
    card, described = material.card, material.forecasts
    network, period_s = card["settings"]["network"], card["description"]["period_s"]
    size = f"{network['layers']} layers of" if network["layers"] > 1 else "one layer of"
    what = f"{CELLS.get(network['cell'], network['cell'])} network with {size} {network['hidden']} units"
    every = f"one timestep every {duration(1, period_s)}" if period_s else "timesteps at irregular times"
    seen = f"{len(card['features'])} feature{'s' * (len(card['features']) != 1)}"
    if described is None:
        classes = network["task"].get("classes", [])
        return (
            f"A recurrent {what} tells which of {len(classes)} classes each timestep belongs to, from {seen}, {every}."
        )
    targets = [_with_unit(name, unit) for name, unit in zip(described["targets"], described["units"], strict=True)]
    if len(targets) > SHOWN + 1:
        targets = [*targets[:SHOWN], f"{len(targets) - SHOWN} more"]
    horizons = [material.ahead(horizon) for horizon in described["horizons"]]
    return f"A recurrent {what} forecasts {joined(targets)} {joined(horizons)} ahead, from {seen}, {every}."


def _against_baselines(material: Material) -> Html:
    rows = material.table
    rivals = [name for name in NAMES if any(row.get(name) for row in rows)]
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        headings = ["ahead", "model", "skill", *(NAMES[name] for name in rivals), "MASE"]
        body = [_error_row(material, row, rivals) for row in mine]
        parts.append(table(headings, body, f"{_with_unit(target, mine[0]['unit'])}: absolute error"))
    how = (
        "Mean absolute error on the held-out part, and below it the root mean squared error: lower is better. Skill is the "
        "share of the best baseline's error that the model takes away: 0 is no better, 100 % is perfect. MASE is the error "
        "in units of what a naive forecast has on the training part. In red: a baseline that the model does not beat."
    )
    return section("Against the baselines", how, *parts)


def _error_row(material: Material, row: Json, rivals: Sequence[str]) -> list[str]:
    """Ahead, the errors, skill and MASE; a rival that is not beaten stands out."""
    cells = [material.ahead(row["horizon"]), _errors(row["model"], "best" if row["beats_baselines"] else "")]
    cells.append(tag("span", _share(row["skill"]), kind="lost" if row["skill"] <= 0 else "best"))
    cells += [_errors(row.get(name), "lost" if _unbeaten(row, name) else "") for name in rivals]
    return [*cells, _digits(row["model"].get("mase"), 3)]


def _intervals(material: Material) -> Html:
    rows = [row for row in material.table if row["model"].get("pinball") is not None or row.get("interval")]
    rivals = [name for name in NAMES if any((row.get(name) or {}).get("pinball") is not None for row in rows)]
    calibrated = any(row.get("interval") for row in rows)
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        headings = ["ahead", "model", *(NAMES[name] for name in rivals), *["calibrated"] * calibrated]
        body = [
            [
                material.ahead(row["horizon"]),
                *(_pinball(row.get(name)) for name in ("model", *rivals)),
                *[_calibrated(row.get("interval"))] * calibrated,
            ]
            for row in mine
        ]
        parts.append(table(headings, body, f"{_with_unit(target, mine[0]['unit'])}: pinball loss"))
    levels = _levels(material)
    stated = f", which should be {100 * (levels[-1] - levels[0]):.0f} %" if len(levels) > 1 else ""
    how = (
        "Pinball loss of the quantiles: lower is better. Below it, how much of what came true lies between the lowest and the "
        f"highest quantile{stated}, and how wide that is on average. The quantiles of a baseline are those of its errors on "
        "the validation part."
    )
    if calibrated:
        how += " Calibrated: the interval that the graph corrects while it runs, what it holds, and what it promises."
    return section("Intervals", how, *parts)


def _forecasts(material: Material) -> Html:
    replayed, parts = material.replayed, []
    for place, name, unit, horizons in material.shown():
        first, end = curves.telling_stretch(replayed, place)
        rows = slice(first, end)
        parts.append(tag("h3", _with_unit(name, unit)))
        # One scale for all horizons, or the eye compares what cannot be compared.
        seen = [
            replayed.truth[rows, place],
            *(replayed.arrived("forecast", index)[rows, place] for index, _, _ in horizons),
        ]
        for index, ahead, _ in horizons:
            draw = _forecast_chart(
                material, rows, place, index, charts.linear(np.concatenate(seen), unit, ticks=4), name
            )
            parts.append(figure(f"{ahead} ahead", both(draw)))
    levels = material.replayed.outputs.get("quantiles") is not None and _levels(material)
    interval = f", the band from its {levels[0]:g} to its {levels[-1]:g} quantile" if levels else ""
    how = (
        f"The thin line is what came true, the blue one what had been forecast for that time{interval}. The stretch is, of the livelier "
        "half of the held-out part, the one whose error is the most usual: neither the best nor the worst."
    )
    return section("Forecasts against what came true", how, *parts)


def _forecast_chart(
    material: Material, rows: slice, place: int, index: int, scale: charts.Scale, name: str
) -> Callable[[int], str]:
    """Draws one horizon of one target in a given width."""
    replayed = material.replayed
    seconds = replayed.times[rows].astype("datetime64[ms]").astype(np.float64) / 1e3

    def draw(width: int) -> str:
        across = charts.calendar(replayed.times[rows], 8 if width > charts.NARROW else 3)
        plot = Plot(f"{name}: forecasts and truth", across, scale, width=width, height=170, names=("forecast",))
        band = "quantiles" in replayed.outputs
        if band:
            said = np.clip(replayed.arrived("quantiles", index)[rows, place], scale.low, scale.high)
            plot.band(seconds, said[:, 0], said[:, -1], "a")
        forecast, truth = replayed.arrived("forecast", index)[rows, place], replayed.truth[rows, place]
        plot.line(seconds, truth, "truth")
        plot.line(seconds, forecast, "a")
        plot.name([(_last(forecast), "forecast", "a"), (_last(truth), "truth", "truth")])
        return plot.svg()

    return draw


def _skill(material: Material) -> Html:
    rows = material.table
    parts = []
    for target in list(dict.fromkeys(row["target"] for row in rows))[:SHOWN]:
        mine = [row for row in rows if row["target"] == target]
        bars = [
            # A skill has no lower end; a bar has.
            (
                material.ahead(row["horizon"]),
                max(row["skill"], -1.0),
                _share(row["skill"]),
                "ab"[row["skill"] <= 0],
            )
            for row in mine
        ]
        parts.append(figure(target, charts.bar_rows(f"{target}: skill by horizon", bars)))
    how = "The share of the best baseline's error that the model takes away, by how far ahead it looks: a bar to the left is worse, and ends at −100 %."
    return section("Skill by horizon", how, grid(*parts))


def _calibration(material: Material) -> Html:
    rows = {(row["target"], row["horizon"]): row["model"].get("quantiles", ()) for row in material.table}
    parts = []
    for _, name, _, horizons in material.shown():
        lines = []
        for index, ahead, colour in horizons:
            told = rows.get((name, material.replayed.horizons[index]), ())
            if told:
                lines.append((ahead, colour, [one["level"] for one in told], [one["below"] for one in told]))
        if lines:
            parts.append(figure(name, _diagonal(f"{name}: calibration", "stated", "observed", lines)))
    bins = (material.card["scores"].get("classification") or {}).get("confidence", ())
    if bins:
        lines = [("", COLOURS[0], [one["said"] for one in bins], [one["right"] for one in bins])]
        parts.append(
            figure("The likeliest class", _diagonal("reliability of the classes", "probability", "right", lines))
        )
    how = (
        "How often the model says that the truth lies below a quantile, and how often it does."
        if rows
        else "How sure the model is of the likeliest class, and how often it is right."
    )
    return section("Calibration", f"{how} On the dashed line both are the same.", grid(*parts))


def _diagonal(about: str, x: str, y: str, lines: Sequence[tuple[str, str, list[float], list[float]]]) -> str:
    """Observed against stated shares, with the line where both are equal."""
    marks = tuple((place / 4, f"{place / 4:g}") for place in range(5))
    names = tuple(name for name, *_ in lines)
    plot = Plot(about, charts.Scale(0, 1, marks, x), charts.Scale(0, 1, marks, y), height=260, names=names)
    plot.line([0, 1], [0, 1], "ideal")
    for _, colour, stated, observed in lines:
        plot.line(stated, observed, colour)
        plot.dots(stated, observed, colour, 3.0)
    plot.name([(observed[-1], name, colour) for name, colour, _, observed in lines])
    return plot.svg()


def _residuals(material: Material) -> Html:
    replayed, spread, hourly = material.replayed, [], []
    period_s = material.card["description"]["period_s"]
    for place, name, unit, horizons in material.shown():
        errors = [(ahead, colour, replayed.errors(index)[:, place]) for index, ahead, colour in horizons]
        # The same edges for all horizons, so that a wide spread looks wide.
        edges = curves.edges_of([wrong for *_, wrong in errors])
        for ahead, colour, wrong in errors:
            shares = 100 * curves.histogram(wrong, edges)
            scale = charts.linear(shares, "% of forecasts", zero=True, ticks=3)
            plot = Plot(f"{name}, {ahead} ahead: errors", charts.linear(edges, unit, ticks=4), scale, height=150)
            plot.bars(edges, shares, colour)
            plot.rule("mark", x=0.0)
            spread.append(figure(f"{name}, {ahead} ahead", plot.svg()))
        # Of days there is no hour.
        if period_s is None or period_s < 43_200:
            lines = [(ahead, colour, curves.by_hour(replayed.times, wrong)) for ahead, colour, wrong in errors]
            hourly.append(figure(f"{name}, absolute error by hour of day", _hours(name, unit, lines)))
    how = (
        "Forecast minus truth: bars to the right of zero are forecasts that were too high, the outermost bars hold everything beyond. "
        "By hour of the day, as the data's clock has it: a hill is a time at which the model is weak."
    )
    return section("Errors", how, grid(*spread), grid(*hourly))


def _hours(name: str, unit: str, lines: Sequence[tuple[str, str, curves.Numbers]]) -> str:
    marks = tuple((hour, f"{hour}:00") for hour in (0, 6, 12, 18))
    scale = charts.linear(np.concatenate([errors for *_, errors in lines]), unit, zero=True, ticks=4)
    plot = Plot(f"{name}: error by hour", charts.Scale(0, 23, marks), scale, names=[ahead for ahead, *_ in lines])
    for _, colour, errors in lines:
        plot.line(np.arange(24), errors, colour)
    plot.name([(_last(errors), ahead, colour) for ahead, colour, errors in lines])
    return plot.svg()


def _classes(material: Material) -> Html:
    told = material.card["scores"].get("classification")
    if not told:
        return Html()
    measures = (
        ("accuracy", "accuracy", _share),
        ("macro F1", "macro_f1", _number),
        ("cross-entropy", "cross_entropy", _number),
        ("perplexity", "perplexity", _number),
        ("accuracy, mean of recordings", "recording_accuracy", _share),
        ("cross-entropy, mean of recordings", "recording_cross_entropy", _number),
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


def _anomalies(material: Material) -> Html:
    told, faulted, parts = material.card["scores"].get("anomaly"), material.faulted, []
    if told:
        detectors = [(key, name) for key, name in (("model", "model"), ("pca", "PCA")) if told.get(key)]
        found = [
            [kind["kind"], *(_found(told[key]["kinds"][index]) for key, _ in detectors)]
            for index, kind in enumerate(told["model"]["kinds"])
        ]
        measures = (
            ("false alarms", "false_alarms", _number),
            ("precision", "precision", _share),
            ("recall", "recall", _share),
            ("F1 of events", "f1", _number),
            ("area under precision and recall", "auc_pr", _number),
            ("alarms a day on clean data", "clean_alarms_a_day", _number),
            ("share of clean timesteps with an alarm", "clean_share", _share),
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


def _cold_start(material: Material) -> Html:
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


def _learning(material: Material) -> Html:
    history, best = material.card["history"], material.card["outcome"]["best_epoch"]
    if not history:
        return Html()
    epochs = [row["epoch"] for row in history]
    across = charts.Scale(min(epochs), max(*epochs, min(epochs) + 1), _whole(min(epochs), max(epochs)), "epoch")
    loss, score = [row["loss"] for row in history], [row["score"] for row in history]
    plot = Plot("loss by epoch", across, charts.linear([*loss, *score], ticks=4), height=220, names=("validation",))
    plot.rule("mark", x=best, text=f"kept: epoch {best}")
    plot.line(epochs, loss, "a")
    plot.line(epochs, score, "b")
    plot.dots([best], [score[epochs.index(best)]] if best in epochs else [np.nan], "b", 3.5)
    plot.name([(loss[-1], "training", "a"), (score[-1], "validation", "b")])
    rates = np.array([row["learning_rate"] for row in history])
    power = int(np.floor(np.log10(rates.max()))) if rates.max() > 0 else 0
    scaled = rates / 10.0**power
    scale = charts.linear(scaled, f"× 10{str(power).translate(RAISED)}", zero=True, ticks=4)
    pace = Plot("learning rate by epoch", across, scale, height=220)
    pace.line(epochs, scaled, "e")
    how = (
        f"Loss on the training part and score on the validation part, 1 being a naive guess; the weights of epoch {best} were kept. "
        f"The training stopped: {STOPPED[material.card['outcome']['stopped']]}."
    )
    return section("Learning", how, grid(figure("Loss", plot.svg()), figure("Learning rate", pace.svg())))


def _data(material: Material) -> Html:
    card = material.card
    names = (("training", "training", ""), ("validation", "validation", "validation"), ("held_out", "held out", "held"))
    bar = "".join(f'<div class="{kind}" style="flex:{card["data"][key]["rows"]}"></div>' for key, _, kind in names)
    parts = [
        [
            Html(f'<span class="once"><span class="key {kind}"></span>{escape(label)}</span>'),
            f"{part['rows']:,}",
            f"{100 * part['rows'] / card['data']['rows']:.0f} %",
            _day(part["start"]),
            _day(part["end"]),
        ]
        for key, label, kind in names
        for part in [card["data"][key]]
    ]
    features = [
        [
            _with_unit(column["name"], column["unit"]),
            _number(column["mean"]),
            _number(column["std"]),
            _number(column["low"]),
            _number(column["high"]),
            *(_percent(column["missing"][key]) for key in ("training", "held_out")),
        ]
        for column in card["features"]
    ]
    groups = card["data"]["groups"]
    told = (
        f"{card['data']['rows']:,} rows"
        + (f" in {groups:,} groups" if groups > 1 else "")
        + f", SHA-256 {card['data']['sha256']}."
    )
    how = "The model has learned from the first part, the second watched it learn, and only the third, which it has never seen, judges it."
    return section(
        "Data",
        how,
        tag("div", Html(bar), kind="parts"),
        table(["part", "timesteps", "share", "from", "to"], parts),
        tag("p", told, kind="foot"),
        table(
            ["feature", "mean", "std", "lowest", "highest", "missing", "missing, held out"],
            features,
            "Features in the training part",
        ),
    )


def _settings(material: Material) -> Html:
    card = material.card
    parity, made = card["parity"], card["made_with"]
    names = [column["name"] for column in card["features"]]
    network = card["settings"]["network"]
    task = {key: value for key, value in network["task"].items() if key != "kind"}
    if "targets" in task:  # the settings count columns
        task["targets"] = [names[target] for target in task["targets"]]
    networks = [*_flat(network | {"task": network["task"]["kind"]}), *_flat(task)]
    fits = _flat(card["settings"]["fit"])
    agreed = (
        f"outputs differ by at most {parity['outputs']:.1e} standard deviations, the state by {parity['state']:.1e} "
        f"(rounding alone: {parity['rounding']:.1e}, allowed: {parity['limit']:.0e}), over {parity['steps']:,} timesteps with missing values, in batches of "
        f"{joined([str(batch) for batch in parity['batches']])}"
    )
    checks = [
        ("graph against network", agreed),
        ("fingerprint", card["fingerprint"]),
        ("made with", ", ".join(f"{name} {version}" for name, version in made.items())),
    ]
    how = (
        "With the same data, settings and versions, on the same kind of CPU, the training gives the same weights again."
    )
    return section(
        "Settings",
        how,
        tag("h3", "Network"),
        facts(networks, "tight"),
        tag("h3", "Training"),
        facts(fits, "tight"),
        tag("h3", "Checks"),
        facts(checks, "tight"),
    )


def _serving(material: Material) -> Html:
    card = material.card
    feature, output = card["features"][0], card["description"]["outputs"][0]["name"]
    value = float(f"{feature['mean']:.4g}")
    client = f"""import asyncio
from serving.client import Client


async def main():
    client = Client("localhost:50051")
    async with client, client.open("stream-1", model={card["name"]!r}) as stream:
        for value in ({value}, float("nan"), {value}):  # NaN: missing
            # Features that are left out are missing too.
            prediction = await stream.step({{{feature["name"]!r}: value}})
            print(prediction.step, prediction[{output!r}].ravel())


asyncio.run(main())
"""
    how = "The folder of models holds this version; raw units go in and come out, and the server keeps the state of each stream."
    return section(
        "Serve it",
        how,
        tag("pre", "tidegate serve --models models\ntidegate stream FILE.csv --model " + card["name"]),
        tag("pre", client),
    )


def _foot(material: Material) -> Html:
    card = material.card
    again = f"tidegate report models/{card['name']}/{card['version']}"
    return tag(
        "footer",
        tag("p", "The same facts are in card.json. ", tag("code", again), " makes this page again.", kind="foot"),
    )


PARTS: tuple[Callable[[Material], Html], ...] = (
    _top,
    _against_baselines,
    _classes,
    _intervals,
    _forecasts,
    _skill,
    _calibration,
    _residuals,
    _anomalies,
    _cold_start,
    _learning,
    _data,
    _settings,
    _serving,
    _foot,
)


def _unbeaten(row: Json, rival: str) -> bool:
    """Whether the rival is at least as good as the model."""
    other = row.get(rival)
    return other is not None and other["mae"] <= row["model"]["mae"]


def _errors(error: Json | None, kind: str) -> str:
    """MAE, and below it RMSE."""
    return _two(_digits(error["mae"]), _digits(error["rmse"]), kind) if error else "-"


def _pinball(error: Json | None) -> str:
    """Pinball loss, and below it coverage and width."""
    if not error or error.get("pinball") is None:
        return "-"
    holds = f"{_share(error['coverage'])}, {_digits(error['width'], 3)}" if error.get("coverage") is not None else ""
    return _two(_digits(error["pinball"]), holds)


def _calibrated(interval: Json | None) -> str:
    """How much the interval of the graph holds and its width, and below it what it should hold."""
    if not interval:
        return "-"
    stated = f"should be {_share(interval['nominal'])}" if interval.get("nominal") is not None else ""
    return _two(f"{_share(interval['coverage'])}, {_digits(interval['width'], 3)}", stated)


def _found(told: Json) -> str:
    """How many of the faults, and below it the median delay."""
    delay = f"after {_number(told['delay'])}" if told["delay"] is not None else ""
    return _two(f"{told['found']} of {told['events']}", delay)


def _two(above: str, below: str, kind: str = "") -> Html:
    return Html(f"{tag('span', above, kind=kind)}{tag('small', below) if below else ''}")


def _levels(material: Material) -> list[float]:
    outputs = material.card["description"]["outputs"]
    return next((list(output["quantiles"]) for output in outputs if output["name"] == "quantiles"), [])


def _flat(settings: Json) -> Iterator[tuple[str, str]]:
    """Names, as the options are called, and values."""
    for key, value in settings.items():
        yield key.replace("_", "-"), _said(value)


def _said(value: object) -> str:
    """A setting in words."""
    if value is None or value in ("", (), []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _whole(low: int, high: int) -> tuple[tuple[float, str], ...]:
    """Ticks at whole numbers only."""
    return tuple(
        tick for tick in charts.linear([low, high], ticks=5).ticks if tick[0] == int(tick[0]) and low <= tick[0] <= high
    )


def _last(values: curves.Numbers) -> float:
    """The last number that is one: where a direct label belongs."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _number(value: float | None) -> str:
    """Four digits that count, without zeros at the end."""
    if value is None:
        return "-"
    return charts.signed(f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}")


def _digits(value: float | None, digits: int = 4) -> str:
    """So many digits that count, so that a column of errors has them below one another."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.{digits}g}".rstrip(".")


def _share(value: float | None) -> str:
    return "-" if value is None else charts.signed(f"{100 * value:z.1f} %")


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2g} %"


def _day(time: str) -> str:
    date = np.datetime64(time, "s").item()
    return f"{date.day} {charts.MONTHS[date.month - 1]} {date.year}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
