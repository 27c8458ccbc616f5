"""Sections of the report: what the model is, how it was trained, on what data, and how to serve it."""

from html import escape
from typing import Any

import numpy as np

from tidegate.training.data.gaps import Absence
from tidegate.training.judging.replay import DRAWN
from tidegate.training.judging.verdict import duration, joined
from tidegate.training.publishing import charts
from tidegate.training.publishing.card import STOP_REASONS
from tidegate.training.publishing.charts import Plot
from tidegate.training.publishing.page import Html, facts, figure, grid, section, table, tag
from tidegate.training.publishing.report.content import Json, ReportContent
from tidegate.training.publishing.report.formats import (
    RAISED,
    day,
    duration_of,
    flat_settings,
    missing_percent,
    number,
    whole_ticks,
    with_unit,
)

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "peephole": "peephole LSTM", "peephole-previous": "peephole LSTM"}


def header(content: ReportContent) -> Html:
    """What the model is, and its verdict."""
    card = content.card
    data, held = card["data"], card["data"]["held_out"]
    wins = bool(card["scores"].get("beats_baselines"))
    rows = [
        ("data", data["name"]),
        ("times", "UTC" if held["start"].endswith("Z") else "on the clock of the data, whose zone it does not tell"),
        ("trained on", f"{day(data['training']['start'])} to {day(data['training']['end'])}"),
        ("scored on", f"{day(held['start'])} to {day(held['end'])}, {held['rows']:,} held-out timesteps"),
        (
            "created",
            f"{card['created'][:16].replace('T', ' ')} UTC, in {duration_of(card['outcome']['seconds'])} of training",
        ),
        ("parameters", f"{card['parameters']:,}"),
        ("licence of the data", data.get("licence", "not stated")),
        ("source of the data", data.get("source", f"{card['source']['data'].rsplit('/', maxsplit=1)[-1]}")),
    ]
    return tag(
        "header",
        tag("p", "Report of a model", kind="kicker"),
        tag("h1", f"{card['name']}, version {card['version']}"),
        tag("p", _summary(content), kind="lead"),
        tag("p", card["verdict"], kind="verdict" if wins else "verdict fails"),
        facts(rows),
    )


def _summary(content: ReportContent) -> str:
    """The purpose of the model, in a sentence."""
    card, described = content.card, content.forecasts
    network, period_s = card["settings"]["network"], card["description"]["period_s"]
    size = f"{network['layers']} layers of" if network["layers"] > 1 else "one layer of"
    what = f"{CELLS.get(network['cell'], network['cell'])} network with {size} {network['hidden']} units"
    interval = f"one timestep every {duration(1, period_s)}" if period_s else "timesteps at irregular times"
    seen = f"{len(card['features'])} feature{'s' * (len(card['features']) != 1)}"
    if described is None:
        classes = network["task"].get("classes", [])
        return f"A recurrent {what} predicts which of {len(classes)} classes each timestep belongs to, from {seen}, {interval}."
    targets = [with_unit(name, unit) for name, unit in zip(described["targets"], described["units"], strict=True)]
    if len(targets) > DRAWN + 1:
        targets = [*targets[:DRAWN], f"{len(targets) - DRAWN} more"]
    horizons = [content.horizon_text(horizon) for horizon in described["horizons"]]
    return f"A recurrent {what} forecasts {joined(targets)} {joined(horizons)} ahead, from {seen}, {interval}."


def learning(content: ReportContent) -> Html:
    """Loss, score and learning rate by epoch."""
    history, best = content.card["history"], content.card["outcome"]["best_epoch"]
    if not history:
        return Html()
    epochs = [row["epoch"] for row in history]
    first = min(best, *epochs)  # epoch 0 is the regression alone
    across = charts.Scale(first, max(*epochs, first + 1), whole_ticks(first, max(epochs)), "epoch")
    loss, score = [row["loss"] for row in history], [row["score"] for row in history]
    plot = Plot("loss by epoch", across, charts.linear([*loss, *score], ticks=4), height=220, names=("validation",))
    plot.rule(best, f"kept: epoch {best}")
    plot.line(epochs, loss, "a")
    plot.line(epochs, score, "b")
    plot.dots(
        [best], [score[epochs.index(best)] if best in epochs else content.card["outcome"]["best_score"]], "b", 3.5
    )
    plot.name([(loss[-1], "training", "a"), (score[-1], "validation", "b")])
    rates = np.array([row["learning_rate"] for row in history])
    power = int(np.floor(np.log10(rates.max()))) if rates.max() > 0 else 0
    scaled = rates / 10.0**power
    scale = charts.linear(scaled, f"× 10{str(power).translate(RAISED)}", zero=True, ticks=4)
    pace = Plot("learning rate by epoch", across, scale, height=220)
    pace.line(epochs, scaled, "e")
    how = (
        f"Loss on the training part and score on the validation part, where 1 is the naive forecast; the weights of epoch {best} were kept. "
        f"The training stopped: {STOP_REASONS[content.card['outcome']['stopped']]}."
    ) + _network_adds(content.card["outcome"])
    return section("Learning", how, grid(figure("Loss", plot.svg()), figure("Learning rate", pace.svg())))


def _network_adds(outcome: dict[str, Any]) -> str:
    """What the network adds to the linear link, if there is one."""
    gain = outcome.get("gain")
    if gain is None:
        return ""
    if not outcome["corrections_kept"]:
        return (
            " The network adds nothing to the linear regression on the validation part: the regression forecasts alone."
        )
    return (
        f" The network lowers the error of the linear regression on the validation part by {100 * gain:.1f} %; its correction is "
        f"kept for {outcome['corrections_kept']} of the forecasts."
    )


def data_section(content: ReportContent) -> Html:
    """The parts of the series, and its features."""
    card = content.card
    names = (("training", "training", ""), ("validation", "validation", "validation"), ("held_out", "held out", "held"))
    bar = "".join(f'<div class="{kind}" style="flex:{card["data"][key]["rows"]}"></div>' for key, _, kind in names)
    parts = [
        [
            Html(f'<span class="once"><span class="key {kind}"></span>{escape(label)}</span>'),
            f"{part['rows']:,}",
            f"{100 * part['rows'] / card['data']['rows']:.0f} %",
            day(part["start"]),
            day(part["end"]),
        ]
        for key, label, kind in names
        for part in [card["data"][key]]
    ]
    features = [
        [
            with_unit(column["name"], column["unit"]),
            number(column["mean"]),
            number(column["std"]),
            number(column["low"]),
            number(column["high"]),
            *(missing_percent(column["missing"][key]) for key in ("training", "held_out")),
        ]
        for column in card["features"]
    ]
    groups = card["data"]["groups"]
    scores = (
        f"{card['data']['rows']:,} rows"
        + (f" in {groups:,} groups" if groups > 1 else "")
        + f", SHA-256 {card['data']['sha256']}."
        + _absent(card["data"].get("absent"))
    )
    how = "The model is trained on the first part. The second selects its weights. All scores are those of the third, which it has never seen."
    return section(
        "Data",
        how,
        tag("div", Html(bar), kind="parts"),
        table(["part", "timesteps", "share", "from", "to"], parts),
        tag("p", scores, kind="foot"),
        table(
            ["feature", "mean", "std", "lowest", "highest", "missing", "missing, held out"],
            features,
            "Features in the training part",
        ),
    )


def _absent(absent: Json | None) -> str:
    """The absent rows in a sentence; empty without a gap, and for a card from before they were counted."""
    return f" In the series {Absence(**absent).text}." if absent and absent["gaps"] else ""


def settings_section(content: ReportContent) -> Html:
    """Settings of network and training, parity and versions."""
    card = content.card
    parity, made = card["parity"], card["made_with"]
    names = [column["name"] for column in card["features"]]
    network = card["settings"]["network"]
    task = {key: value for key, value in network["task"].items() if key != "kind"}
    if "targets" in task:  # the settings count columns
        task["targets"] = [names[target] for target in task["targets"]]
    networks = [*flat_settings(network | {"task": network["task"]["kind"]}), *flat_settings(task)]
    fits = flat_settings(card["settings"]["fit"])
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


def serving_section(content: ReportContent) -> Html:
    """Commands and a client that serve this version."""
    card = content.card
    feature, output = card["features"][0], card["description"]["outputs"][0]["name"]
    value = float(f"{feature['mean']:.4g}")
    client = f"""import asyncio
from tidegate.client import Client


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


def footer(content: ReportContent) -> Html:
    """How to make the page again."""
    card = content.card
    again = f"tidegate report models/{card['name']}/{card['version']}"
    return tag(
        "footer",
        tag("p", "The same facts are in card.json. ", tag("code", again), " makes this page again.", kind="foot"),
    )
