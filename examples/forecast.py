"""Forecast the temperature at three airports up to twelve hours ahead, with intervals that keep their coverage.

    python examples/forecast.py [--quick] [--folder demo/forecast]

One model learns from all three airports. Then the last weeks of one, which it has not seen, are streamed to a server hour by
hour, as a weather station would, and each forecast is held against what came true.
"""

from pathlib import Path

import common
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.table import Table

from tidegate.blocking import Client
from tidegate.training.data.series import Floats

AIRPORT = "JFK"
HORIZONS = (1, 3, 6, 12)  # hours; a timestep is an hour
COVERAGE = 0.8
# Some 1,300 hours do not tell a share more exactly than this: the weather of neighbouring hours is alike.
LEEWAY = 0.1
HOUR = np.timedelta64(1, "h")


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "forecast")
    version, held_out = common.next_version(here.models / "weather"), here.folder / "held_out.csv"

    common.title("1. Learn from three airports at once; hold the last weeks of each out")
    common.run(
        "train", "--data", "weather", "--target", "temp", "--horizons", ",".join(map(str, HORIZONS)),
        "--calendar", "day,year", "--coverage", COVERAGE, "--hidden", 32, "--epochs", 5 if here.quick else 40,
        "--models", here.models, "--version", version, "--out", here.folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    common.title(f"2. Serve it, and stream what {AIRPORT} measured")
    rows = [row for row in common.read_rows(held_out) if row["origin"] == AIRPORT]
    with (
        common.serving(here.models, here.folder / "data") as (address, _),
        Client(address) as client,
        client.open(model="weather") as stream,
    ):
        x = common.numbers(rows, [feature.name for feature in stream.model.features])
        predictions = list(stream.predict(x))  # as many ahead as the server allows; `stream.step` sends one and waits
    served = {name: np.stack([prediction[name] for prediction in predictions]) for name in predictions[0]}

    common.title(f"3. What was said at noon and midnight of the last days, {HORIZONS[2]} hours ahead")
    times = np.array([row["time"] for row in rows], "datetime64[s]")
    temperature = common.numbers(rows, ["temp"])[:, 0]
    truth = true_later(times, temperature)
    forecast, interval = served["forecast"][..., 0], served["interval"][..., 0, :]  # (hours, horizons), (..., 2)
    show(times, forecast[:, 2], interval[:, 2], truth[:, 2])
    picture = here.folder / "forecast.png"
    draw(picture, times, forecast[:, 2], interval[:, 2], truth[:, 2])
    common.say(f"picture: {picture}")

    common.title("4. Was it worth it?")
    inside = (interval[..., 0] <= truth) & (truth <= interval[..., 1])
    for place, hours in enumerate(HORIZONS):
        known = ~np.isnan(truth[:, place] + temperature)
        error = np.abs(forecast[:, place] - truth[:, place])[known].mean()
        naive = np.abs(temperature - truth[:, place])[known].mean()
        covered = inside[known, place].mean()
        common.check(
            f"{hours:>2} h: error {error:.2f} °F, below persistence, which has {naive:.2f}", holds=error < naive
        )
        common.check(
            f"{hours:>2} h: {covered:.0%} came true inside the interval, {COVERAGE:.0%} to within {LEEWAY:.0%}",
            holds=abs(covered - COVERAGE) <= LEEWAY,
        )
    same = common.same_bits(here.models / "weather" / str(version), x, served)
    common.check("what was served is what the graph says by itself, to the last bit", holds=same)


def true_later(times: np.ndarray, values: Floats) -> Floats:
    """(hours, horizons) what was measured so much later; missing where it was not, or where the station was silent."""
    measured = dict(zip(times.tolist(), values, strict=True))
    later = [[measured.get((time + hours * HOUR).item(), np.nan) for hours in HORIZONS] for time in times]
    return np.array(later, np.float32)


def show(times: np.ndarray, forecast: Floats, interval: Floats, truth: Floats) -> None:
    """Prints the last forecasts beside what came true."""
    table = Table(box=None, header_style="bold")
    for name in ("made at, UTC", "forecast, °F", "interval, °F", "came true, °F", ""):
        table.add_column(name, justify="right" if name.endswith("°F") else "left")
    chosen = [row for row in np.flatnonzero(~np.isnan(truth)) if times[row].item().hour % 12 == 0][-10:]
    for row in chosen:
        low, high = interval[row]
        table.add_row(
            f"{times[row].item():%d %b %H:%M}",
            f"{forecast[row]:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{truth[row]:.1f}",
            "inside" if low <= truth[row] <= high else "outside",
        )
    common.console.print(table)


def draw(picture: Path, times: np.ndarray, forecast: Floats, interval: Floats, truth: Floats) -> None:
    """Draws the last ten days, each forecast at the hour that it was for."""
    mpl.use("agg")
    last = slice(-240, None)
    hours = times[last] + HORIZONS[2] * HOUR
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    axes.fill_between(hours, *interval[last].T, color="tab:blue", alpha=0.2, lw=0, label=f"{COVERAGE:.0%} interval")
    axes.plot(hours, forecast[last], color="tab:blue", lw=1.2, label=f"forecast, made {HORIZONS[2]} h before")
    axes.plot(hours, truth[last], color="black", lw=1, label="came true")
    axes.set(ylabel="temperature, °F", title=f"{AIRPORT}: ten days that the model has not seen, as it was served")
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%d %b"))
    axes.legend(loc="upper right", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
