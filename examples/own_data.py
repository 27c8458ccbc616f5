"""Your own table: three pumps in one file, readings at odd times, holes and silences; trained, served, and a server restarted.

    python examples/own_data.py [--quick] [--folder demo/own_data]

The table is made up here, so that it can be looked at. The pressure behind a pump follows what flows through it, slowly; so a
model that knows how much time has passed can say where it is going.
"""

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import common
import numpy as np
from rich.table import Table

from tidegate.blocking import Client, Stream
from tidegate.client import Prediction

ROWS = 3000  # of each pump
HORIZONS = (1, 5)  # timesteps, of a minute or so
SLOWNESS_S = 300.0  # how long the pressure takes to follow
SILENCE = timedelta(hours=2)
PUMP = "C"


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "own_data")
    version, held_out = common.next_version(here.models / "pumps"), here.folder / "held_out.csv"
    table, data = here.folder / "pumps.csv", here.folder / f"data-{version}"
    write_table(table)

    common.title(f"1. The table, {3 * ROWS:,} rows")
    common.say("".join(table.open(encoding="utf-8").readlines()[:6]).rstrip())
    common.run(
        "train", "--data", table, "--time", "measured_at", "--group", "pump", "--elapsed", "--target", "pressure",
        "--horizons", ",".join(map(str, HORIZONS)), "--hidden", 32, "--epochs", 30 if here.quick else 60,
        "--models", here.models, "--version", version, "--out", here.folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    common.title(f"2. Serve it, stream half of what pump {PUMP} measured, and restart the server")
    rows = [row for row in common.read_rows(held_out) if row["pump"] == PUMP]
    half, predictions = len(rows) // 2, []
    for part in (rows[:half], rows[half:]):
        with (
            common.serving(here.models, data) as (address, _),
            Client(address) as client,
            client.open(f"pump-{PUMP}", model="pumps") as stream,
        ):
            common.say(f"stream {stream.stream_id} is {stream.kind}, its next timestep is {stream.next_step}")
            names = [feature.name for feature in stream.model.features]
            predictions += send(stream, part, before=rows[half - 1] if predictions else None)

    common.title("3. The last forecasts, and what came true")
    served = {name: np.stack([prediction[name] for prediction in predictions]) for name in predictions[0]}
    pressure = common.numbers(rows, ["pressure"])[:, 0]
    forecast = served["forecast"][..., 0]
    show(rows, forecast, served["quantiles"][:, 1, 0], pressure)

    common.title("4. Was it worth it?")
    for place, horizon in enumerate(HORIZONS):
        now, later, prediction = pressure[:-horizon], pressure[horizon:], forecast[:-horizon, place]
        known = ~np.isnan(now + later)
        error, naive = np.abs(prediction - later)[known].mean(), np.abs(now - later)[known].mean()
        common.check(
            f"{horizon} ahead: error {error:.3f} bar, below persistence, which has {naive:.3f}",
            holds=error < naive,
        )
    x = common.numbers(rows, names)
    x[0, names.index("elapsed_s")] = np.nan  # the stream begins here: there is no reading before it
    same = common.same_bits(here.models / "pumps" / str(version), x, served)
    common.check("both halves are what the graph says by itself of the whole, to the last bit", holds=same)


def send(stream: Stream, rows: list[dict[str, str]], before: dict[str, str] | None) -> list[Prediction]:
    """Sends readings as a sensor would, with the seconds since the one before; what is left out is missing."""
    predictions = []
    for row in rows:
        reading = {name: float(row[name]) for name in ("flow", "pressure", "oil") if row[name]}
        if before is not None:
            reading["elapsed_s"] = (time_of(row) - time_of(before)).total_seconds()
        predictions.append(stream.step(reading))
        before = row
    return predictions


def time_of(row: dict[str, str]) -> datetime:
    """When a row was measured."""
    return datetime.fromisoformat(row["time"])


def show(rows: list[dict[str, str]], forecast: np.ndarray, quantiles: np.ndarray, pressure: np.ndarray) -> None:
    """Prints the last forecasts of the longer horizon."""
    table = Table(box=None, header_style="bold")
    for name in ("made at", "pressure then", "forecast", "10% to 90%", "came true", "after"):
        table.add_column(name, justify="left" if name == "made at" else "right")
    ahead = HORIZONS[1]
    for place in range(len(rows) - ahead - 8, len(rows) - ahead):
        took = time_of(rows[place + ahead]) - time_of(rows[place])
        low, _, high = quantiles[place]
        table.add_row(
            f"{time_of(rows[place]):%d %b %H:%M:%S}",
            "missing" if np.isnan(pressure[place]) else f"{pressure[place]:.2f}",
            f"{forecast[place, 1]:.2f}",
            f"{low:.2f} to {high:.2f}",
            "missing" if np.isnan(pressure[place + ahead]) else f"{pressure[place + ahead]:.2f}",
            f"{took.total_seconds() / 60:.1f} min",
        )
    common.console.print(table)


def write_table(path: Path) -> None:
    """Writes the table: a row a reading, in the order in which they came."""
    rng = np.random.default_rng(0)
    rows = []
    for pump, lowest in (("A", 2.0), ("B", 3.0), ("C", 2.5)):
        time, flow, pressure = datetime(2026, 3, 1, tzinfo=UTC), 10.0, lowest
        for number in range(ROWS):
            step = timedelta(seconds=int(rng.gamma(2.0, 30.0)) + 1)
            time += SILENCE if number in (800, 1900, 2700) else step
            if rng.random() < 0.03:  # somebody turns the valve
                flow = rng.uniform(2.0, 20.0)
            pressure += (lowest + 0.2 * flow - pressure) * (1.0 - np.exp(-step.total_seconds() / SLOWNESS_S))
            oil = 40.0 + 5.0 * pressure + rng.normal(0.0, 1.0)
            values = [flow + rng.normal(0.0, 0.2), pressure + rng.normal(0.0, 0.02), oil]
            cells = ["" if rng.random() < 0.05 else f"{value:.3f}" for value in values]
            rows.append([time.strftime("%Y-%m-%dT%H:%M:%S"), pump, *cells])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["measured_at", "pump", "flow", "pressure", "oil"], *sorted(rows)])


if __name__ == "__main__":
    main()
