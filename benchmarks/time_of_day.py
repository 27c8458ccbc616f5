"""Measures what the time of day, of the week and of the year adds to the regression on a window of the past.

    python -m benchmarks.time_of_day             # half a minute
    python -m benchmarks.time_of_day --more file.csv:column:1,6,24,96

The regression is that of `--links linear` for a series that keeps no level, with and without the columns of `--calendar`. For each
number of lags and penalty it is fitted on the first part of the training part and judged on the rest of it, and fitted on the
training part and judged on the validation part; the held-out part is not read. The least errors are compared.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import DRIFTING_SERIES, LEADS, drifting_series
from tidegate.training.data.datasets import DATASETS
from tidegate.training.data.features import add_derived, derived_names
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series, Spans, future_values, season_steps
from tidegate.training.data.source import read_source
from tidegate.training.data.split import split_by_time
from tidegate.training.judging.least_squares import NormalEquations, blocks, linear_inputs, one_thread, row_indices
from tidegate.training.judging.ridge import EARLY_SHARE, LAGS, MAX_LAGS
from tidegate.training.settings import Source

CALENDARS = (("day",), ("day", "week"), ("day", "year"))
# Evenly chosen rows to fit on, and to judge on.
FITTED_ROWS, JUDGED_ROWS = 50_000, 4096

Doubles = npt.NDArray[np.float64]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", action="append", default=[], help="another series, as FILE:COLUMN:HORIZONS")
    given = parser.parse_args()
    print(
        "| series | calendar | ahead | error less by, within the training part | on the validation part |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, data, column, horizons in [*usual(Path(folder)), *(other(more) for more in given.more)]:
            for words, *gains in measure(read_source(Source(data=data)), column, horizons):
                early, late = (", ".join(f"{100 * gain:+.1f} %" for gain in part) for part in gains)
                print(
                    f"| {name} | {' and '.join(words)} | {', '.join(map(str, horizons))} | {early} | {late} |",
                    flush=True,
                )


def usual(folder: Path) -> Iterator[tuple[str, str, str, Sequence[int]]]:
    """Yields name, data, target and horizons of the series of `benchmarks.accuracy`."""
    for name, horizons in (("appliances", (1, 6, 36, 144)), ("weather", (1, 3, 6, 12, 24))):
        yield name, name, DATASETS[name].target, horizons
    for number in range(DRIFTING_SERIES):
        path, values = folder / f"drifting-{number}.csv", drifting_series(number)
        times = np.datetime64("2024-01-01T00") + np.arange(len(values)) * np.timedelta64(1, "h")
        rows = [f"{time}:00,{','.join(map(str, row))}" for time, row in zip(times, values, strict=True)]
        path.write_text("\n".join(["time,s0,s1,s2", *rows]) + "\n", encoding="utf-8")
        yield path.stem, str(path), "s0", LEADS


def other(text: str) -> tuple[str, str, str, Sequence[int]]:
    """The same of FILE:COLUMN:HORIZONS."""
    file, column, horizons = text.rsplit(":", 2)
    return Path(file).stem, file, column, tuple(int(horizon) for horizon in horizons.split(","))


@one_thread()
def measure(series: Series, column: str, horizons: Sequence[int]) -> Iterator[tuple[Sequence[str], Doubles, Doubles]]:
    """Yields each calendar with the shares (horizons,) of the error that it takes away, on both parts."""
    split = split_by_time(series, train=0.7, validation=0.15, horizon=max(horizons))
    cuts = [(first, first + int((end - first) * EARLY_SHARE), end) for first, end in split.train]
    folds: list[tuple[Spans, Spans]] = [
        (tuple((first, cut) for first, cut, _ in cuts), tuple((cut, end) for _, cut, end in cuts)),
        (split.train, split.validation),
    ]
    season = season_steps(series.period_s) or 0
    lags = sorted({count for count in (*LAGS, season + 1, 2 * season) if 1 <= count <= MAX_LAGS})
    bare = [errors(series, column, horizons, fold, lags, ()) for fold in folds]
    for words in CALENDARS:
        early, late = (
            1.0 - errors(series, column, horizons, fold, lags, words) / before
            for fold, before in zip(folds, bare, strict=True)
        )
        yield words, early, late


def errors(
    series: Series,
    column: str,
    horizons: Sequence[int],
    fold: tuple[Spans, Spans],
    lags: Sequence[int],
    words: Sequence[str],
) -> Doubles:
    """(horizons,) the least mean absolute error over numbers of lags and penalties."""
    waves = derived_names((), horizons, words, elapsed=False)
    series = add_derived(series, waves)
    target, others = series.column(column), [series.column(wave) for wave in waves]
    scaler = fit_scaler(series, fold[0])
    inputs = linear_inputs(series, scaler.mean, scaler.std)
    (rows, change), (later, true) = (
        _known(series, target, horizons, spans, most, float(scaler.std[target]))
        for spans, most in zip(fold, (FITTED_ROWS, JUDGED_ROWS), strict=True)
    )
    moments = NormalEquations.over(
        (inputs.centred(part, target, lags[-1], others), truth) for part, truth in blocks(rows, change)
    )
    design = inputs.centred(later, target, lags[-1], others)
    least = np.full(len(horizons), np.inf)
    for count in lags:
        columns = np.concatenate([np.arange(count - 1), lags[-1] - 1 + np.arange(len(others))]).astype(np.int64)
        weights, intercepts = moments.solve(columns)
        missed = (
            true[:, None] - np.tensordot(design[:, columns], weights, 1) - intercepts
        )  # (rows, penalties, horizons)
        least = np.minimum(least, np.abs(missed).mean(axis=0).min(axis=0))
    return least


def _known(
    series: Series, target: int, horizons: Sequence[int], spans: Spans, most: int, std: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Evenly chosen rows (n,) whose present and future values are known, and the changes to those (n, horizons), scaled."""
    rows = row_indices(spans)
    change = (future_values(series, [target], horizons, spans)[:, :, 0] - series.values[rows, target][:, None]) / std
    known = np.flatnonzero(~np.isnan(change).any(axis=1))
    known = known[:: max(-(-len(known) // most), 1)]
    return rows[known], change[known].astype(np.float32)


if __name__ == "__main__":
    main()
