"""The report of a version: one page that says what was learned, how good it is, and how to serve it.

All that it tells is in the card; all that it draws besides comes from one replay of the held-out part (`curves`). A section
is there when its data is. The same card and replay give the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from training import charts, curves
from training.card import STOPPED
from training.charts import Plot, both
from training.curves import Replayed
from training.faults import Event
from training.page import Html, facts, figure, grid, page, section, table, tag
from training.scoreboard import lead

Json = dict[str, Any]

# More charts of one kind than this say no more, and a hundred targets would be a book.
SHOWN = 4
COLOURS = "abcd"
# How a card calls the baselines, and how people do.
RIVALS = {"persistence": "persistence", "seasonal_naive": "seasonal-naive", "ridge": "ridge regression"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "peephole": "peephole LSTM", "peephole-previous": "peephole LSTM"}


@dataclass(frozen=True)
class Faulted:
    """The held-out part with faults of sensors put into it, what the graph said, and where the faults are (places)."""

    replayed: Replayed
    events: tuple[Event, ...]


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
        return lead(horizon, None if period_s is None else horizon * period_s)

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
    every = f"one timestep every {lead(1, period_s)}" if period_s else "timesteps at irregular times"
    seen = f"{len(card['features'])} feature{'s' * (len(card['features']) != 1)}"
    if described is None:
        classes = network["task"].get("classes", [])
        return (
            f"A recurrent {what} tells which of {len(classes)} classes each timestep belongs to, from {seen}, {every}."
        )
    targets = [_with_unit(name, unit) for name, unit in zip(described["targets"], described["units"], strict=True)]
    if len(targets) > 2 * SHOWN:
        targets = [*targets[:SHOWN], f"{len(targets) - SHOWN} more"]
    horizons = [material.ahead(horizon) for horizon in described["horizons"]]
    return f"A recurrent {what} forecasts {_and(targets)} {_and(horizons)} ahead, from {seen}, {every}."


def _against_baselines(material: Material) -> Html:
    rows = material.table
    rivals = _rivals(rows[0]) if rows else []
    further = [
        key for key in ("mase", "pinball", "coverage", "width") if any(_single(row, key) is not None for row in rows)
    ]
    headings = ["ahead", "model", *(RIVALS.get(name, name) for name in rivals), "skill", *further]
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        body = [_score_row(row, rivals, further) for row in mine]
        parts.append(table(headings, body, _with_unit(target, mine[0]["unit"])))
    how = (
        "Mean absolute error in the target's unit, and below it the root mean squared error: lower is better. "
        "Skill is the share of the best baseline's error that the model takes away: 0 is no better, 100 % is perfect."
    )
    return section("Against the baselines", how, *parts)


def _score_row(row: Json, rivals: Sequence[str], further: Sequence[str]) -> list[str]:
    """Ahead, the errors, skill and what else was measured; a rival that is better stands out."""
    cells = [lead(row["horizon"], row["horizon_s"]), _errors(row["model"], "best")]
    cells += [_errors(row.get(name), "lost" if _beaten(row, name) else "") for name in rivals]
    cells.append(tag("span", f"{100 * row['skill']:.1f} %", kind="lost" if row["skill"] <= 0 else "best"))
    return [*cells, *(_number(_single(row, key)) for key in further)]


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
        f"What came true in black, and in blue what had been forecast for that time{interval}. The stretch is, of the livelier "
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
            (
                lead(row["horizon"], row["horizon_s"]),
                row["skill"],
                f"{100 * row['skill']:.1f} %",
                "a" if row["skill"] > 0 else "b",
            )
            for row in mine
        ]
        parts.append(figure(target, charts.bar_rows(f"{target}: skill by horizon", bars)))
    how = "The share of the best baseline's error that the model takes away, by how far ahead it looks: a bar to the left is worse."
    return section("Skill by horizon", how, grid(*parts))


def _calibration(material: Material) -> Html:
    replayed, parts = material.replayed, []
    levels = _levels(material)
    if levels:
        for place, name, _, horizons in material.shown():
            shares = [
                curves.shares_below(replayed.truth[:, place], replayed.arrived("quantiles", index)[:, place])
                for index, _, _ in horizons
            ]
            lines = [
                (ahead, colour, levels, list(share)) for (_, ahead, colour), share in zip(horizons, shares, strict=True)
            ]
            parts.append(figure(name, _diagonal(f"{name}: calibration", "stated", "observed", lines)))
    if "probability" in replayed.outputs and replayed.labels is not None:
        said, right, _ = curves.reliability(replayed.outputs["probability"], replayed.labels)
        lines = [("", "a", list(said), list(right))]
        parts.append(figure("Likeliest class", _diagonal("reliability", "probability", "right", lines)))
    how = (
        "Of a quantile or a probability it is stated how often the truth should lie below it, or be it; a point above the dashed line "
        "came true more often than stated, one below it less often."
    )
    return section("Calibration", how, grid(*parts))


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
    said = [(key.replace("_", " "), _number(value)) for key, value in told.items() if isinstance(value, int | float)]
    names = [str(name) for name in material.card["settings"]["network"]["task"]["classes"]]
    chart = charts.matrix("confusion matrix", names, told["confusion"])
    how = "Each row is what was true, each column what the model said; the darker a square, the larger its share of the row. Blue is right."
    return section("Classes", how, facts(said, kind="tight"), figure("Confusion matrix", chart))


def _anomalies(material: Material) -> Html:
    told, faulted, parts = material.card["scores"].get("anomaly"), material.faulted, []
    if told:
        said = [
            (key.replace("_", " "), _number(value)) for key, value in told.items() if isinstance(value, int | float)
        ]
        parts.append(facts(said, kind="tight"))
    if faulted is not None:
        parts.append(figure("Score and alarms, with faults put into the held-out part", both(_score_chart(faulted))))
    how = (
        "The score of each timestep, 1 being the most unexpected; a shaded stretch is a fault that was put in, a red mark below the "
        "axis an alarm. Marks outside the shade are false alarms, shade without a mark is a fault that was missed."
    )
    return section("Anomalies", how, *parts)


def _score_chart(faulted: Faulted) -> Callable[[int], str]:
    replayed = faulted.replayed
    # The place, not the time, so that the gaps between groups take no room.
    places = np.arange(len(replayed.times))
    score, alarm = replayed.outputs["score"][:, 0], replayed.outputs["alarm"][:, 0] > 0.5

    def draw(width: int) -> str:
        # As many points as there are pixels, each the highest of its timesteps: a spike must not fall between two.
        size = max(len(score) // width, 1)
        firsts = places[::size]
        highest = np.maximum.reduceat(score, firsts) if len(score) else score
        marks = tuple((place / 2, f"{place / 2:g}") for place in range(3))
        across = charts.linear(places, "timestep", zero=True, ticks=6 if width > charts.NARROW else 3)
        plot = Plot("anomaly score", across, charts.Scale(0, 1, marks, "score"), width=width, height=190)
        plot.spans([(event.first, event.end) for event in faulted.events], "fault")
        plot.line(firsts, highest, "a")
        plot.dots(places[alarm], np.full(int(alarm.sum()), -0.03), "b", 1.6)
        return plot.svg()

    return draw


def _cold_start(material: Material) -> Html:
    parts = []
    for told in material.card["scores"].get("cold_start", [])[: SHOWN * SHOWN]:
        steps, cold, warm = told["steps"], told["mae"], told["warm"]
        name = f"{told['target']}, {material.ahead(told['horizon'])} ahead"
        scale = charts.linear([*cold, warm], told.get("unit", ""), zero=True, ticks=4)
        plot = Plot(
            f"{name}: cold start", charts.logarithmic(steps, "steps"), scale, height=160, names=("fresh", "warm")
        )
        plot.rule("mark", y=warm)
        plot.line(steps, cold, "a")
        plot.dots(steps, cold, "a")
        plot.name([(cold[-1], "fresh", "a"), (warm, "warm", "e")])
        parts.append(figure(name, plot.svg()))
    how = "The mean absolute error of a stream that has just been opened, by its number of timesteps, beside that of one that has run for long."
    return section("A new stream", how, grid(*parts))


def _learning(material: Material) -> Html:
    history, best = material.card["history"], material.card["outcome"]["best_epoch"]
    if not history:
        return Html()
    epochs = [row["epoch"] for row in history]
    across = charts.Scale(min(epochs), max(*epochs, min(epochs) + 1), _whole(min(epochs), max(epochs)), "epoch")
    loss, score = [row["loss"] for row in history], [row["score"] for row in history]
    plot = Plot("loss by epoch", across, charts.linear([*loss, *score], ticks=4), height=220, names=("validation",))
    plot.rule("mark", x=best, text=f"best: epoch {best}")
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
    how = "The model has learned from the first part, the second chose its best epoch, and only the third, which it has never seen, judges it."
    return section(
        "Data",
        how,
        tag("div", Html(bar), kind="parts"),
        table(["part", "timesteps", "share", "from", "to"], parts),
        tag("p", told, kind="foot"),
        table(
            ["feature", "mean", "std", "lowest", "highest", "missing", "and held out"],
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
        f"(allowed: {parity['limit']:.0e}), over {parity['steps']:,} timesteps with missing values, in batches of "
        f"{_and(map(str, parity['batches']))}"
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
    async with Client("localhost:50051") as client, client.open("stream-1", model={card["name"]!r}) as stream:
        for value in ({value}, float("nan"), {value}):  # NaN is a missing value
            prediction = await stream.step({{{feature["name"]!r}: value}})  # names left out are missing too
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
    _forecasts,
    _skill,
    _calibration,
    _residuals,
    _classes,
    _anomalies,
    _cold_start,
    _learning,
    _data,
    _settings,
    _serving,
    _foot,
)


def _rivals(row: Json) -> list[str]:
    """The baselines of a row, those that have a MAE."""
    return [key for key, value in row.items() if key != "model" and isinstance(value, dict) and "mae" in value]


def _beaten(row: Json, rival: str) -> bool:
    """Whether the rival is at least as good as the model."""
    other = row.get(rival)
    return other is not None and other["mae"] <= row["model"]["mae"]


def _errors(error: Json | None, kind: str) -> str:
    if error is None:
        return "-"
    return Html(f"{tag('span', _number(error['mae']), kind=kind)}{tag('small', _number(error['rmse']))}")


def _single(row: Json, key: str) -> float | None:
    """A measure of the model in a row, where it is one number."""
    value = row["model"].get(key, row.get(key))
    return float(value) if isinstance(value, int | float) else None


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


def _and(words: Any) -> str:
    """One, two and three."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else str(last)


def _number(value: float | None) -> str:
    """Four digits that count."""
    if value is None:
        return "-"
    return charts.signed(f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}")


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2g} %"


def _day(time: str) -> str:
    date = np.datetime64(time, "s").item()
    return f"{date.day} {charts.MONTHS[date.month - 1]} {date.year}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
