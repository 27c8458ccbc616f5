"""Measures alarms: the share of clean timesteps with an alarm, and the faults that are found, beside T2 and Q of a PCA.

    python -m benchmarks.alarms                  # some twenty minutes on one core; --jobs 4 on four
    python -m benchmarks.alarms --quick          # only check that it runs

The series are simulated: six sensors of a plant, sampled every second, every minute and every ten minutes; the same with
sensors that drift; and the named data set `appliances`. Each is learned from 400 and from 100,000 rows (`appliances` from
those that it has). PCA stands beside the alarm twice: with the threshold that raises the stated share of alarms on the rows
that it was fitted on, and with the one that raises as many bursts of alarms on the clean held-out rows as the alarm.

`--write` writes `benchmarks/alarms.md`. The exit code is 1 when a goal is missed, unless with `--quick`.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series, count_rows
from tidegate.training.data.source import read_source
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.judging.detection import FaultyReplay, score_anomalies
from tidegate.training.judging.faults import KINDS
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.pca import fit_pca
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.scores import Detection
from tidegate.training.learning.calibration import calibrate
from tidegate.training.learning.fit import fit
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import add_monitors, without_monitors
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.settings import Architecture, Fit, Forecast, Source

PAGE = Path(__file__).with_suffix(".md")
RATE = 0.01
# The share of alarms is to lie within this factor of the stated one.
FACTOR = 1.5
# Timesteps just after the warm-up that are counted by themselves.
FIRST = 500

PERIODS = {"1 s": 1.0, "1 min": 60.0, "10 min": 600.0}
SENSORS = ("flow", "pressure", "current", "temp_in", "temp_out", "vibration")
SHORT = 400
HELD_OUT = 12_000
# Rows of a drifting sensor in which it walks as far as its own standard deviation.
WALK_ROWS = 5000
HOUSE = (
    "Appliances,lights,T1,RH_1,T2,RH_2,T3,RH_3,T4,RH_4,T5,RH_5,T6,RH_6,T7,RH_7,T8,RH_8,T9,RH_9,"
    "T_out,Press_mm_hg,RH_out,Windspeed,Visibility,Tdewpoint"
)


@dataclass(frozen=True)
class Case:
    """A series and its split."""

    name: str
    series: Series
    split: Split
    epochs: int


@dataclass(frozen=True)
class Result:
    """What the alarm and PCA made of a case."""

    name: str
    rows: int
    share: float  # of clean timesteps with an alarm
    first: float  # the same just after the warm-up
    pca_share: float  # of PCA with a threshold from the fit
    model: Detection
    pca: Detection


def main() -> int:
    """Print the tables. Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the long fits")
    parser.add_argument("--jobs", type=int, default=1, help="processes that work side by side")
    parser.add_argument("--quick", action="store_true", help="two short fits of one period")
    parser.add_argument("--write", action="store_true", help="write benchmarks/alarms.md")
    given = parser.parse_args()
    results = []
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        chosen = quick_cases() if given.quick else cases(given.seeds, given.rows)
        for result in pool.map(measure, chosen):
            results.append(result)
            print(rate_row([result]), flush=True)
    lines, missed = tables(results)
    text = "\n".join([*lines, "", "## Goals", "", *(missed or ["Every goal is met."]), ""])
    print(text)
    if given.write:
        command = f"python -m benchmarks.alarms --seeds {given.seeds} --rows {given.rows} --write"
        PAGE.write_text(f"{HEAD}\nMade with `{command}`, torch {torch.__version__}.\n\n{text}", encoding="utf-8")
    return int(bool(missed) and not given.quick)


def cases(seeds: int, rows: int) -> Iterator[Case]:
    """Yields every series."""
    house = read_source(Source(data="appliances", columns=tuple(HOUSE.split(","))))
    yield Case("appliances, 10 min", house, split_by_time(house, train=0.7, validation=0.15, horizon=1), 10)
    for count, fits, epochs in ((rows, 1, 2), (SHORT, seeds, 40)):
        for drift in (False, True):
            for label in PERIODS:
                for seed in range(fits):
                    yield simulated(label, count, HELD_OUT, seed=seed, drift=drift, epochs=epochs)


def quick_cases() -> Iterator[Case]:
    """Yields two that take seconds."""
    for drift in (False, True):
        yield simulated("1 min", SHORT, 1000, seed=0, drift=drift, epochs=2)


def simulated(label: str, rows: int, held_out: int, *, seed: int, drift: bool, epochs: int) -> Case:
    """A case of the simulated plant: rows to learn from, then the held-out rows."""
    series = plant(rows + held_out, PERIODS[label], seed, drift=drift)
    train = round(0.85 * rows)
    split = Split(((0, train),), ((train, rows),), ((rows, len(series)),))
    return Case(f"{label}, {'drifting' if drift else 'steady'}", series, split, epochs)


def plant(rows: int, period_s: float, seed: int, *, drift: bool) -> Series:
    """Six sensors that a common load couples. Its times are of the clock, so a short period shows slow movement and noise."""
    rng = np.random.default_rng(seed)
    times_s = np.arange(rows) * period_s

    def wander(time_constant_s: float) -> np.ndarray:
        """An Ornstein-Uhlenbeck process with standard deviation 1."""
        keep = np.exp(-period_s / time_constant_s)
        return recursive(rng.normal(0.0, np.sqrt(1.0 - keep**2), rows), keep, rng.normal())

    load = wander(1200.0) + np.sin(2 * np.pi * times_s / 86_400.0)
    inlet = 20.0 + wander(7200.0)
    lag = np.exp(-period_s / 600.0)
    warmed = recursive((1.0 - lag) * load, lag, load[0])
    clean = np.stack(
        [
            10 + 2 * load,
            4 + 0.8 * load + 0.3 * wander(300.0),
            5 + 1.2 * load,
            inlet,
            inlet + 2 * warmed,
            1 + 0.3 * np.abs(load),
        ],
        axis=1,
    )
    values = clean + rng.normal(0.0, (0.3, 0.05, 0.2, 0.02, 0.02, 0.2), clean.shape)
    if drift:
        values += np.cumsum(rng.normal(0.0, 1.0, clean.shape), axis=0) / np.sqrt(WALK_ROWS) * values.std(axis=0)
    times = np.datetime64("2024-01-01", "ns") + (times_s * 1e9).astype("timedelta64[ns]")
    return Series("plant", "0" * 64, SENSORS, ("",) * 6, values.round(3).astype(np.float32), times, period_s)


def recursive(inputs: np.ndarray, keep: float, start: float) -> np.ndarray:
    """(time,) y[t] = keep * y[t - 1] + inputs[t]."""
    outputs, now = np.empty(len(inputs)), start
    for place, value in enumerate(inputs):
        outputs[place] = now = keep * now + value
    return outputs


def measure(case: Case) -> Result:
    """Learn the fitted part, export, and judge the graph on the rest."""
    torch.set_num_threads(1)
    series, split = case.series, case.split
    scaler, held_out = fit_scaler(series, split.train), split.test
    targets = tuple(range(len(series.names)))
    rows = count_rows(split.train + split.validation)
    task = Forecast(
        targets=targets,
        horizons=(1,),
        links=("last", "features"),
        alarm_rate=RATE,
        alarm_times=alarm_times(rows, series.period_s),
    )
    architecture = Architecture(features=len(targets), hidden=32, task=task)
    settings = Fit(epochs=case.epochs, device="cpu")
    fitted = fit(series, split, scaler, without_monitors(architecture), settings, lambda _epoch, _best: None)
    network = add_monitors(fitted.network, architecture)
    calibrate(network, series, split)
    facts = DataFacts.of(series, split, scaler)
    graph = Graph(build_graph(network, describe(network, facts, scores={})).SerializeToString(), case.name)
    replay = Replay.of(graph, series, held_out)
    faulty = FaultyReplay.of(graph, series, held_out, split, replay)
    assert faulty is not None
    scores = score_anomalies(graph, series, held_out, split, replay, faulty)
    assert scores.pca is not None
    warm, alarm = (replay.outputs[name][:, 0] > 0.5 for name in ("warm", "alarm"))
    pca = fit_pca(series, split)
    usual = np.quantile(pca.score(series, split.train + split.validation), 1.0 - RATE)
    return Result(
        case.name,
        rows,
        scores.model.clean_share,
        float(alarm[warm][:FIRST].mean()),
        float((pca.score(series, held_out) > usual)[warm].mean()),
        scores.model,
        scores.pca,
    )


def tables(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The lines of both tables, and the goals that are missed."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.name, result.rows), []).append(result)
    lines = ["## Rate on clean rows", "", RATE_HEAD, *(rate_row(group) for group in groups.values())]
    lines += ["", "## Faults found before they are over", "", *fault_head()]
    for (name, rows), group in groups.items():
        for detector, which in (("alarm", "model"), ("T2, Q", "pca")):
            detections: list[Detection] = [getattr(result, which) for result in group]
            found = [
                f"{sum(each.kinds[place].found for each in detections)}/{sum(each.kinds[place].events for each in detections)}"
                for place in range(len(KINDS))
            ]
            during = f"{sum(each.during for each in detections)}/{sum(each.events for each in detections)}"
            f1 = f"{statistics.mean(each.f1 for each in detections):.2f}"
            lines.append(f"| {name}, {rows:,} rows | {detector} | {during} | {' | '.join(found)} | {f1} |")
    missed = [
        f"{name}, {rows:,} rows: {100 * share:.2f} % of clean timesteps have an alarm, expected {100 * RATE:g} % within a factor of {FACTOR:g}"
        for (name, rows), group in groups.items()
        if not RATE / FACTOR <= (share := statistics.mean(result.share for result in group)) <= RATE * FACTOR
    ]
    return lines, missed


RATE_HEAD = f"| series | fits | share with an alarm | single fits | first {FIRST} after the warm-up | T2, Q |\n|---|---|---|---|---|---|"


def rate_row(group: Sequence[Result]) -> str:
    """A row of the first table: means over the fits."""
    single = ", ".join(f"{100 * result.share:.2f}" for result in group)
    means = (
        f"{100 * statistics.mean(getattr(result, name) for result in group):.2f} %"
        for name in ("share", "first", "pca_share")
    )
    share, first, pca = means
    return f"| {group[0].name}, {group[0].rows:,} rows | {len(group)} | {share} | {single} | {first} | {pca} |"


def fault_head() -> list[str]:
    """The head of the second table."""
    return [f"| series | | in time | {' | '.join(KINDS)} | F1 |", "|---" * (len(KINDS) + 4) + "|"]


HEAD = """# Alarms

Six simulated sensors of a plant, sampled at three periods, steady and drifting, and the named data set `appliances`. A model is learned from 400 or
100,000 rows, and its exported graph judged on the 12,000 rows that follow: the share of clean timesteps with an alarm at a stated 1 %, and the faults
that it finds ([docs/scores.md](../docs/scores.md) describes them). A fault counts as found by kind up to six timesteps after its end, and as found in time before its end.

T2 and Q are those of a PCA of two neighbouring timesteps, fitted on the same rows. In the first table their threshold raises 1 % of alarms on those rows;
in the second it raises as many bursts of alarms on the clean held-out rows as the alarm, which is fitted on the rows that are judged and so favours PCA.
"""

if __name__ == "__main__":
    sys.exit(main())
