"""What the monitors do on the held-out part of `appliances`: coverage of the intervals, alarms on clean data, faults found.

Every sensor is a target. The network is trained for a few epochs, the monitors are calibrated, and copies of the held-out
part with faults from different seeds are replayed through the exported graph side by side. An alarm finds a fault from its
first timestep to two after its last: some faults show only when they end. Exit code 1 where a goal is missed.

Run as `python -m benchmarks.alarms`: as a script it would take a file of this folder for a package of that name.
"""

import argparse
import sys
from collections import Counter

import numpy as np
import torch

from training.calibration import calibrate
from training.export import build_graph, check_parity, describe
from training.faults import Event, Moments, inject
from training.fit import fit
from training.graph import Graph
from training.monitors import WARM_STEPS
from training.network import add_monitors, without_monitors
from training.run import Facts
from training.series import Floats, Series, Split, fit_scaler, split_by_time
from training.settings import Architecture, Fit, Forecast, Source
from training.source import read_source

HORIZONS = (1, 6, 36)
COVERAGE = 0.8
STEPS_A_DAY = 144
AFTER = 2  # timesteps after a fault's last in which an alarm still finds it
REST = 24  # timesteps after a fault in which an alarm is not a false one
WARM = int(WARM_STEPS)

FOUND_GOAL, FALSE_A_DAY_GOAL, RATE_GOAL = 0.9, 1.0, 1.5


def make_graph(series: Series, split: Split, alarm_rate: float, epochs: int) -> Graph:
    """Train, calibrate and export."""
    scaler = fit_scaler(series, split.train)
    count = len(series.names)
    task = Forecast(
        targets=tuple(range(count)),
        horizons=HORIZONS,
        quantiles=(0.1, 0.5, 0.9),
        coverage=COVERAGE,
        alarm_rate=alarm_rate,
    )
    architecture = Architecture(features=count, task=task)
    fitted = fit(series, split, scaler, without_monitors(architecture), Fit(epochs=epochs))
    network = add_monitors(fitted.network, architecture)
    calibrate(network, series, split)
    model = build_graph(network, describe(network, Facts.of(series, split, scaler), scores={}))
    parity = check_parity(network, model)
    print(f"graph of {len(model.graph.node)} nodes, {parity.outputs:.1e} from the network")
    return Graph(model.SerializeToString(), series.name)


def bursts(alarm: Floats) -> int:
    """How often an alarm (time,) begins."""
    return int((np.diff(alarm, prepend=0.0) > 0).sum())


def report_faults(alarms: Floats, events: list[tuple[Event, ...]]) -> float:
    """Print the share of faults found by kind; alarms (time, copies). Gives the share of all."""
    all_of, found, inside = Counter[str](), Counter[str](), Counter[str]()
    for copy, faults in enumerate(events):
        for event in faults:
            all_of[event.kind] += 1
            found[event.kind] += bool(alarms[event.first : event.end + AFTER, copy].any())
            inside[event.kind] += bool(alarms[event.first : event.end, copy].any())
    for kind, count in all_of.items():
        print(
            f"  {kind:8} {count:4} faults, found {found[kind] / count:6.1%}, before its end {inside[kind] / count:6.1%}"
        )
    share = found.total() / all_of.total()
    print(
        f"  all      {all_of.total():4} faults, found {share:6.1%}, before its end {inside.total() / all_of.total():6.1%}"
    )
    return share


def false_a_day(alarms: Floats, events: list[tuple[Event, ...]]) -> float:
    """Alarms that begin outside faults, a day."""
    begun, days = 0, 0.0
    for copy, faults in enumerate(events):
        clean = np.ones(len(alarms), np.bool_)
        clean[:WARM] = False
        for event in faults:
            clean[event.first : event.end + REST] = False
        begun += bursts(alarms[:, copy] * clean)
        days += clean.sum() / STEPS_A_DAY
    return begun / days


def report_coverage(interval: Floats, truth: Floats) -> None:
    """Print how much of the truth (time, targets) the intervals (time, horizons, targets, 2) hold."""
    for index, horizon in enumerate(HORIZONS):
        low, high = np.moveaxis(interval[:-horizon, index], -1, 0)
        covered = ((low <= truth[horizon:]) & (truth[horizon:] <= high)).mean(axis=0)
        print(f"  {horizon:3} ahead: {covered.mean():.1%}, by sensor {covered.min():.1%} to {covered.max():.1%}")


def main() -> int:
    """Measure and compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--alarm-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--copies", type=int, default=30, help="of the held-out part, each with about 20 faults")
    parser.add_argument("--seed", type=int, default=1000, help="of the first copy's faults")
    options = parser.parse_args()
    torch.set_num_threads(1)
    series = read_source(Source(data="appliances"))
    split = split_by_time(series, train=0.7, validation=0.15, horizon=max(HORIZONS))
    graph = make_graph(series, split, options.alarm_rate, options.epochs)
    ((first, end),) = split.test
    clean = series.values[first:end]
    moments = Moments.of(series, split.train)
    faulty = [
        inject(clean, moments, columns=range(clean.shape[1]), count=100, seed=options.seed + copy, warm=3 * WARM)
        for copy in range(options.copies)
    ]
    outputs, _ = graph.replay(np.stack([clean, *(values for values, _ in faulty)], axis=1))
    alarms, events = outputs["alarm"][..., 0], [faults for _, faults in faulty]
    print(f"coverage, stated {COVERAGE:.0%}, on {len(clean)} clean timesteps")
    report_coverage(outputs["interval"][:, 0], clean)
    rate = float(alarms[WARM:, 0].mean())
    a_day = bursts(alarms[WARM:, 0]) / (len(clean) - WARM) * STEPS_A_DAY
    print(
        f"alarms on clean data: {rate:.2%} of timesteps, stated {options.alarm_rate:.2%}; {a_day:.2f} false alarms a day"
    )
    share, false = report_faults(alarms[:, 1:], events), false_a_day(alarms[:, 1:], events)
    print(f"false alarms between the faults: {false:.2f} a day")
    held = max(rate / options.alarm_rate, options.alarm_rate / max(rate, 1e-9)) <= RATE_GOAL
    return 0 if share >= FOUND_GOAL and max(a_day, false) <= FALSE_A_DAY_GOAL and held else 1


if __name__ == "__main__":
    sys.exit(main())
