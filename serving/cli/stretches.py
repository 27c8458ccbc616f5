"""Cuts a series at its time gaps, as `tidegate evaluate` does: short gaps become missing values, a longer one ends a stretch.

The rules and numbers are those of `training/data/series.py`, `load.py` and `gaps.py`; a test compares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise

import numpy as np

from tidegate.cli.sensor_table import InvalidTable, SensorTable
from tidegate.cli.times import steps_s
from tidegate.core.spec import Array

# Steps are regular if this share of them lies within a tenth of the usual one.
REGULAR_SHARE = 0.9
PERIOD_TOLERANCE = 0.1
# A gap is longer than this number of periods; of usual steps where there is no period.
GAP_PERIODS = 1.5
GAP_STEPS_IRREGULAR = 10.0


@dataclass(frozen=True, slots=True)
class Clock:
    """How often the rows of a file come.

    Attributes:
        step_s: the usual seconds from row to row; 0 if there is no second row.
        regular: whether most steps are about that long.
    """

    step_s: float
    regular: bool

    @classmethod
    def of(cls, series: Sequence[Sequence[datetime]]) -> "Clock":
        """The clock of all series of a file, from the times of their rows."""
        steps = np.concatenate([steps_s(times) for times in series])
        if not len(steps):
            return cls(0.0, True)
        usual = float(np.median(steps))
        near = np.abs(steps - usual) <= PERIOD_TOLERANCE * usual
        return cls(usual, float(near.mean()) >= REGULAR_SHARE)

    @property
    def gap_s(self) -> float:
        """The longest step in seconds that is no gap."""
        return self.step_s * (GAP_PERIODS if self.regular else GAP_STEPS_IRREGULAR)

    def check(self, path: object, period_s: float | None) -> None:
        """Check that the rows are as far apart as those that the model was trained on.

        Raises:
            InvalidTable: they are not. The horizons and the state of a model count rows.
        """
        if not period_s or not self.step_s or abs(self.step_s - period_s) <= PERIOD_TOLERANCE * period_s:
            return
        raise InvalidTable(
            f"{path}: a row comes every {self.step_s:g} s, expected {period_s:g} s as in the training of the model, whose "
            f"horizons and state count rows; give rows that are {period_s:g} s apart"
        )


def cut(table: SensorTable, clock: Clock, fill: int) -> list[SensorTable]:
    """The stretches of a series, in order.

    Args:
        table: one series, with times that increase.
        clock: of the file.
        fill: the longest gap, in rows, that becomes rows of missing values, if the steps are regular.
    """
    assert table.when is not None  # the caller has looked
    times = table.when.moments
    steps = steps_s(times)
    gaps = np.flatnonzero(steps > clock.gap_s) if clock.step_s else np.empty(0, np.int64)
    stretches: list[SensorTable] = []
    labels: list[str] = []
    moments: list[datetime] = []
    values: list[Array] = []
    first = 0
    for end in [*(int(gap) + 1 for gap in gaps), len(times)]:
        labels += table.labels[first:end]
        moments += times[first:end]
        values.append(table.values[first:end])
        absent = round(steps[end - 1] / clock.step_s) - 1 if end < len(times) else 0
        if end < len(times) and clock.regular and absent <= fill:
            step = (times[end] - times[end - 1]) / (absent + 1)
            filled = [times[end - 1] + place * step for place in range(1, absent + 1)]
            labels += [table.when.text(moment) for moment in filled]
            moments += filled
            values.append(np.full((absent, table.values.shape[1]), np.nan, np.float32))
        else:
            when = replace(table.when, moments=tuple(moments))
            part = SensorTable(table.label, tuple(labels), table.features, np.concatenate(values), when=when)
            stretches.append(part)
            labels, moments, values = [], [], []
        first = end
    return stretches


def check_order(path: object, table: SensorTable, times: Sequence[datetime], group: str) -> None:
    """Check that the times of a series do not go back.

    Raises:
        InvalidTable: they do, as those of a file with several series do.
    """
    for row, (before, after) in enumerate(pairwise(times), start=2):
        if after < before:
            what = (
                f"sort the rows of each {group}"
                if group
                else "sort the rows, or name the column that tells several series apart with --group"
            )
            raise InvalidTable(
                f"{path}: row {row} ({table.labels[row - 1]}) is earlier than row {row - 1} ({table.labels[row - 2]}) in "
                f"column {table.label}, expected rows in time order; {what}"
            )
