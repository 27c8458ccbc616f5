"""Watch the climate of a house, room by room, and raise an alarm when a sensor breaks.

    python examples/anomaly.py [--quick] [--folder demo/anomaly]

The model forecasts nine rooms' temperatures ten minutes ahead and knows how wrong it usually is. Faults are put into a copy of
rows that it has not seen; the clean and the faulty rows are streamed side by side, and alarms should come in one only.
"""

import json
from pathlib import Path

import common
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.table import Table

from tidegate.blocking import Client
from tidegate.training.data.series import Floats
from tidegate.training.data.source import read_source
from tidegate.training.judging.events import AlarmMatches, bursts, match_alarms
from tidegate.training.judging.faults import Event, FeatureMoments, inject
from tidegate.training.settings import Source

ROOMS = [f"T{room}" for room in range(1, 10)]
ALARM_RATE = 0.005
FAULTS = 18
STEP_MIN = 10
# Timesteps after a fault's beginning, or its end, in which an alarm still belongs to it.
TOLERANCE = 6
LEAST_FOUND = 0.6
MOST_FALSE_A_DAY = 1.0
WHAT = {
    "spike": "one value is far off",
    "stuck": "repeats a value, 8 h",
    "fixed": "says the mean, 8 h",
    "drift": "drifts away, 8 h",
    "leak": "falls slowly, 32 h",
    "dropout": "says nothing, 4 h",
    "noise": "is noisy, 4 h",
    "scale": "has a wrong scale, 4 h",
    "decoupled": "follows the others no more, 32 h",
}


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "anomaly")
    version, held_out = common.next_version(here.models / "rooms"), here.folder / "held_out.csv"
    folder = here.models / "rooms" / str(version)

    common.title("1. Learn what is usual in nine rooms")
    common.run(
        "train", "--data", "appliances", "--target", ",".join(ROOMS), "--horizons", 1, "--alarm-rate", ALARM_RATE,
        "--hidden", 32, "--epochs", 20 if here.quick else 60, "--models", here.models, "--name", "rooms",
        "--version", version, "--out", here.folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    common.say(
        "As forecasts they are not to be served, as it says: in ten minutes most rooms change by a tick of the sensor."
    )
    common.say("An alarm needs something else: to know how wrong the forecasts usually are.")

    common.title(f"2. Break a copy of the rows that it has not seen, in {FAULTS} places")
    series = read_source(Source(data="appliances"))
    rows = common.read_rows(held_out)
    times = np.array([row["time"] for row in rows], "datetime64[s]")
    clean = common.numbers(rows, series.names)
    taught = json.loads((folder / "card.json").read_text("utf-8"))["data"]["training"]["spans"]
    sensors = [series.column(name) for name in ROOMS]
    faulty, faults = inject(clean, FeatureMoments.of(series, taught), columns=sensors, count=FAULTS, seed=1)

    common.title("3. Serve the model, and stream both")
    with (
        common.serving(here.models, here.folder / "data") as (address, _),
        Client(address) as client,
        client.block(2, model="rooms") as block,
    ):
        answers = list(block.predict(np.stack([clean, faulty], axis=1)))  # a block holds a timestep of each
    served = {
        name: np.stack([prediction[name] for prediction in answers], axis=1) for name in answers[0]
    }  # (2, time, ...)
    calm, excited = served["alarm"][:, :, 0] > 0.5
    found = match_alarms(excited, faults, tolerance=TOLERANCE)
    show(times, faults, found, series.names)
    for first, end in bursts(calm):
        common.say(f"false alarm in the clean stream: {times[first].item():%d %b %H:%M}, {end - first} timesteps")
    picture = here.folder / "anomaly.png"
    draw(picture, times, served["score"][..., 0], (calm, excited), faults)
    common.say(f"picture: {picture}")

    common.title("4. Was it worth it?")
    share = np.mean([delay is not None for delay in found.delays])
    common.check(f"{share:.0%} of the faults are found, {LEAST_FOUND:.0%} or more", holds=share >= LEAST_FOUND)
    false = len(bursts(calm)) / (len(times) * STEP_MIN / 1440)
    common.check(
        f"{false:.2f} false alarms a day in the clean stream, at most {MOST_FALSE_A_DAY:g}",
        holds=false <= MOST_FALSE_A_DAY,
    )
    same = all(
        common.same_bits(folder, x, {name: part[row] for name, part in served.items()})
        for row, x in enumerate((clean, faulty))
    )
    common.check("what was served is what the graph says by itself, to the last bit", holds=same)


def show(times: np.ndarray, faults: tuple[Event, ...], found: AlarmMatches, names: tuple[str, ...]) -> None:
    """Prints a line for each fault."""
    table = Table(box=None, header_style="bold")
    for name in ("from", "sensor", "", "alarm"):
        table.add_column(name)
    for fault, delay in zip(faults, found.delays, strict=True):
        when = "[red]none[/]" if delay is None else "at once" if delay == 0 else f"after {delay * STEP_MIN} min"
        table.add_row(f"{times[fault.first].item():%d %b %H:%M}", names[fault.column], WHAT[fault.kind], when)
    common.console.print(table)


def draw(
    picture: Path, times: np.ndarray, scores: Floats, alarms: tuple[np.ndarray, np.ndarray], faults: tuple[Event, ...]
) -> None:
    """Draws the scores of both streams, the faults and the alarms."""
    mpl.use("agg")
    figure, both = plt.subplots(2, 1, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
    for axes, name, score, alarm in zip(both, ("clean rows", "the same rows with faults"), scores, alarms, strict=True):
        axes.plot(times, score, color="tab:blue", lw=0.6)
        axes.plot(times[alarm], np.full(alarm.sum(), 1.04), "|", color="tab:red", ms=7, label="alarm")
        axes.axhline(0.5, color="grey", lw=0.6, ls=":")
        axes.set(ylabel="score", ylim=(0, 1.1), yticks=(0, 0.5, 1))
        axes.set_title(name, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for fault in faults:
        both[1].axvspan(
            times[fault.first], times[min(fault.end, len(times) - 1)], color="tab:orange", alpha=0.35, lw=1,
            label="fault" if fault is faults[0] else None,
        )  # fmt: skip
    both[1].xaxis.set_major_formatter(mpl.dates.DateFormatter("%d %b"))
    figure.legend(*both[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
