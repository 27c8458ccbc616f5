"""The noun that everything else works on: a table of sensor values over time, how it is split, and its training part's scaler.

Knows no files, no network and no torch. A missing value is NaN from here to the served graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from training.errors import ConstantTarget, EmptyColumn, MissingColumn, SeriesTooShort, SplitError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.datetime64]

# Rows [first, end).
Span = tuple[int, int]
Spans = tuple[Span, ...]

# A step longer than this many periods is a gap: one late sample is jitter, a missing row is not.
GAP_PERIODS = 1.5
# Irregular series have no period; only a silence much longer than the usual step cuts them.
GAP_STEPS_IRREGULAR = 10.0
# float32 keeps seven digits: a spread smaller than this part of the mean is rounding, not signal.
CONSTANT_SPREAD = 1e-6
# Of a label that is not known.
UNLABELLED = -1


@dataclass(frozen=True)
class Group:
    """Rows [first, end) of a table that belong to one sensor, machine or recording, in time order.

    `whole` is what must not be torn apart by a split, such as the person on the recording; empty where time splits.
    """

    name: str
    first: int
    end: int
    whole: str = ""


@dataclass(frozen=True)
class Series:
    """A table of sensor values over time; of one source, or of several groups one after the other.

    Attributes:
        name: what the data is called in cards and tables.
        sha256: of the file that it was read from.
        names, units: of the columns of `values`; a unit is empty where unknown.
        values: (time, features) float32 in raw units; NaN is missing, infinity never occurs.
        times: (time,) nanoseconds, strictly increasing within a group.
        period_s: the usual step in seconds; None when the steps are irregular.
        groups: in row order, covering all rows; empty when the whole table is one series.
        labels: (time,) an index of `classes`, `UNLABELLED` where unknown; None when there is no label column.
        classes: the names of the labels.
        group_column, label_column: what the table calls them; empty when there are none.
    """

    name: str
    sha256: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    values: Floats
    times: Times
    period_s: float | None
    groups: tuple[Group, ...] = ()
    labels: Ints | None = None
    classes: tuple[str, ...] = ()
    group_column: str = ""
    label_column: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> int:
        """The index of a feature.

        Raises:
            MissingColumn: the series has no such feature.
        """
        if name in self.names:
            return self.names.index(name)
        known = ", ".join(self.names)
        for column, what in ((self.group_column, "group"), (self.label_column, "label")):
            if name == column:
                raise MissingColumn(
                    f"{self.name}: {name!r} is the {what} column, expected a feature; there are: {known}"
                )
        raise MissingColumn(f"{self.name}: no column {name!r}; there are: {known}")

    @property
    def spans(self) -> Spans:
        """The rows of each group, or all rows as one span."""
        return tuple((group.first, group.end) for group in self.groups) or ((0, len(self)),)

    def stretches(self, spans: Spans | None = None) -> list[Span]:
        """The runs of rows within the spans (all rows when None) that neither a time gap nor a group's end interrupts."""
        return [
            stretch
            for first, end in (self.spans if spans is None else spans)
            for stretch in pairwise([first, *self._cuts_within(first, end), end])
            if stretch[0] < stretch[1]
        ]

    @cached_property
    def usual_s(self) -> float:
        """The usual step in seconds, also of an irregular series; 0 where there is none."""
        if self.period_s is not None:
            return self.period_s
        steps_s = inner_steps_s(self.times, self.groups)
        return float(np.median(steps_s, overwrite_input=True)) if len(steps_s) else 0.0

    @property
    def gap_s(self) -> float:
        """A longer step than this is a gap."""
        return self.usual_s * (GAP_STEPS_IRREGULAR if self.period_s is None else GAP_PERIODS)

    def _cuts_within(self, first: int, end: int) -> list[int]:
        low, high = np.searchsorted(self._cuts, [first, end])
        return [int(row) for row in self._cuts[low:high]]

    @cached_property
    def _cuts(self) -> Ints:
        """The rows, in order, before which a gap lies or a group begins."""
        cuts = steps_s_of(self.times) > self.gap_s
        cuts[[group.first - 1 for group in self.groups[1:]]] = True
        return np.flatnonzero(cuts) + 1


@dataclass(frozen=True)
class Split:
    """Rows that teach, rows that choose, and rows that are held out and judge.

    `short` names the groups that are whole in the training part because they are too short to be cut.
    """

    train: Spans
    validation: Spans
    test: Spans
    short: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, Spans]]:
        """Each part with its name."""
        return iter((("training", self.train), ("validation", self.validation), ("held-out", self.test)))


@dataclass(frozen=True)
class Scaler:
    """What the training part looks like, per feature, all (features,) float32.

    Mean, standard deviation and range; `step` is the standard deviation of the change from one timestep to the next.

    `constant` names the features whose spread is nil; their `std` and `step` are 1, so that they are zero, not NaN, when scaled.
    """

    mean: Floats
    std: Floats
    low: Floats
    high: Floats
    step: Floats
    constant: tuple[str, ...]


def rows_of(spans: Spans) -> int:
    """How many rows the spans hold."""
    return sum(end - first for first, end in spans)


def split_by_time(series: Series, *, train: float, validation: float, horizon: int) -> Split:
    """Cut every group at two of its rows, so that nothing later than a part has ever been seen by it.

    A group that is too short for three parts teaches as a whole.

    Args:
        series: what to cut.
        train: share of the rows that teach.
        validation: share of the rows that choose; the rest is held out.
        horizon: the furthest step that will be forecast; 0 when nothing is.

    Raises:
        SeriesTooShort: no group is long enough.
    """
    groups = series.groups or (Group(series.name, 0, len(series)),)
    cuts = [
        (group.first + int(rows * train), group.first + int(rows * (train + validation)))
        for group in groups
        for rows in [group.end - group.first]
    ]
    long = [
        min(teach - group.first, choose - teach, group.end - choose) >= _least(horizon)
        for group, (teach, choose) in zip(groups, cuts, strict=True)
    ]
    if not any(long):  # cut them nevertheless: the longest says what is wrong
        longest = int(np.argmax([group.end - group.first for group in groups]))
        long[longest] = True
    split = Split(
        train=tuple(
            (group.first, teach if enough else group.end)
            for group, (teach, _), enough in zip(groups, cuts, long, strict=True)
        ),
        validation=tuple(cut for cut, enough in zip(cuts, long, strict=True) if enough),
        test=tuple((cut[1], group.end) for group, cut, enough in zip(groups, cuts, long, strict=True) if enough),
        short=tuple(group.name for group, enough in zip(groups, long, strict=True) if not enough),
    )
    check_parts(series, split, horizon)
    return split


def split_by_group(
    series: Series,
    *,
    train: float,
    validation: float,
    seed: int,
    hold_out: Sequence[str] = (),
    validate: Sequence[str] = (),
    horizon: int,
) -> Split:
    """Give whole persons, machines or sites (`Group.whole`) to each part, so that those held out are new to the network.

    Which go where is chance; the shares of the rows are as near as whole ones allow.

    Args:
        series: what to split.
        train: share of the rows that teach.
        validation: share of the rows that choose; the rest is held out.
        seed: of the chance.
        hold_out: hold out these and no others; the rest is shared out between the other two parts.
        validate: with `hold_out`: these choose, and the rest teaches.
        horizon: the furthest step that will be forecast; 0 when nothing is.

    Raises:
        SplitError: there are fewer than three wholes, or those that are named are not there or leave none to teach.
        SeriesTooShort: some part has no group that is long enough.
    """
    rows: dict[str, int] = {}
    for group in series.groups:
        rows[group.whole] = rows.get(group.whole, 0) + group.end - group.first
    if unknown := [name for name in hold_out if name not in rows]:
        raise SplitError(f"hold-out: {series.name} has no {unknown[0]!r}; there are: {', '.join(rows)}")
    if validate:
        part_of = _named_parts(series, list(rows), hold_out, validate)
        return _split_of(series, part_of, horizon)
    free = {name: count for name, count in rows.items() if name not in hold_out}
    shares = [train, validation] if hold_out else [train, validation, 1.0 - train - validation]
    if len(free) < len(shares):
        raise SplitError(
            f"split-by: {series.name} has {len(rows)} values to split by ({', '.join(rows)}), expected at least "
            f"{len(shares) + len(set(hold_out))}: one for each part; split by time, or by another column"
        )
    part_of = dict.fromkeys(hold_out, 2) | _share_out(free, shares, np.random.default_rng(seed))
    return _split_of(series, part_of, horizon)


def _named_parts(
    series: Series, names: Sequence[str], hold_out: Sequence[str], validate: Sequence[str]
) -> dict[str, int]:
    """The part of each name, when those that choose and those that judge are named."""
    wrong = [name for name in validate if name not in names or name in hold_out]
    if wrong or not hold_out:
        raise SplitError(
            f"validate-on: got {', '.join(wrong or validate)}, expected values of {', '.join(names)} that are not held out, "
            f"beside --hold-out"
        )
    parts = dict.fromkeys(names, 0) | dict.fromkeys(validate, 1) | dict.fromkeys(hold_out, 2)
    if 0 not in parts.values():
        raise SplitError(f"validate-on: {series.name} has only {', '.join(names)}; leave at least one to teach")
    return parts


def _split_of(series: Series, part_of: dict[str, int], horizon: int) -> Split:
    """The spans of each part."""
    teach, choose, judge = (
        tuple((group.first, group.end) for group in series.groups if part_of[group.whole] == part) for part in range(3)
    )
    split = Split(teach, choose, judge)
    check_parts(series, split, horizon)
    return split


def _share_out(rows: dict[str, int], shares: Sequence[float], rng: np.random.Generator) -> dict[str, int]:
    """Which part each name goes to: at least one to each, and shares of the rows as near as single moves bring them."""
    names = [str(name) for name in rng.permutation(list(rows))]
    wanted = np.array(shares) / sum(shares) * sum(rows.values())
    got = np.zeros(len(shares))
    parts: dict[str, int] = {}
    for place, name in enumerate(names):
        empty = np.flatnonzero(got == 0)
        # The last names are kept for parts that have none yet.
        part = int(empty[0]) if len(empty) >= len(names) - place else int(np.argmax(wanted - got))
        parts[name] = part
        got[part] += rows[name]
    while move := _best_move(rows, parts, got - wanted):
        name, part = move
        got[parts[name]] -= rows[name]
        got[part] += rows[name]
        parts[name] = part
    return parts


def _best_move(
    rows: dict[str, int], parts: dict[str, int], excess: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> tuple[str, int] | None:
    """The name and the part to move it to that bring the shares nearest to what is wanted; None when no move does."""
    left = np.bincount(list(parts.values()), minlength=len(excess))
    best, gain = None, 1e-9  # rounding is no gain
    for name, part in parts.items():
        for other in range(len(excess)):
            if other == part or left[part] == 1:
                continue
            before = abs(excess[part]) + abs(excess[other])
            after = abs(excess[part] - rows[name]) + abs(excess[other] + rows[name])
            if before - after > gain:
                best, gain = (name, other), before - after
    return best


def _least(horizon: int) -> int:
    """The rows that a part needs: for two forecasts and what came true."""
    return horizon + 2


def check_parts(series: Series, split: Split, horizon: int) -> None:
    """See that each part holds at least one forecast and what came true.

    Raises:
        SeriesTooShort: one does not.
    """
    for part, spans in split:
        longest = max((end - first for first, end in spans), default=0)
        if longest < _least(horizon):
            of = f" of {len(series)}" if len(spans) == 1 else " in the longest of its groups"
            what = (
                f"for a horizon of {horizon} steps; give more rows or smaller --horizons" if horizon else "; give more"
            )
            raise SeriesTooShort(
                f"{series.name}: the {part} part has {longest}{of} rows, expected at least {_least(horizon)} {what}"
            )


def fit_scaler(series: Series, spans: Spans) -> Scaler:
    """Mean, spread and range of the rows in the spans, ignoring missing values.

    Raises:
        EmptyColumn: a feature has no value in these rows.
    """
    moments = np.array([_moments(series, index, spans) for index in range(len(series.names))])  # (features, 5)
    mean, std, low, high, step = moments.T
    constant = std <= CONSTANT_SPREAD * np.abs(mean)
    return Scaler(
        mean=mean.astype(np.float32),
        std=np.where(constant, 1.0, std).astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        step=np.where(constant | (step == 0), np.where(constant, 1.0, std), step).astype(np.float32),
        constant=tuple(name for name, flat in zip(series.names, constant, strict=True) if flat),
    )


def _moments(series: Series, index: int, spans: Spans) -> tuple[float, ...]:
    """Mean, standard deviation, range and steps of a column: one at a time, so that millions of rows stay cheap."""
    # Sums of 1e7 rows lose digits in float32.
    values = np.concatenate([series.values[first:end, index] for first, end in spans]).astype(np.float64)
    if np.isnan(values).all():
        column = series.names[index]
        raise EmptyColumn(
            f"{series.name}: column {column!r} has no value in the training part ({len(values)} rows); "
            f"leave it out with --exclude {column}"
        )
    steps = np.diff(values)
    # From one series to the next, or over a gap, is no step.
    ends = np.cumsum([end - first for first, end in series.stretches(spans)])
    steps[ends[:-1] - 1] = np.nan
    step = 0.0 if np.isnan(steps).all() else float(np.nanstd(steps))
    return float(np.nanmean(values)), float(np.nanstd(values)), float(np.nanmin(values)), float(np.nanmax(values)), step


def check_targets(series: Series, scaler: Scaler, targets: Sequence[str]) -> None:
    """See that each target exists and moves in the training part.

    Raises:
        MissingColumn: it is not a feature of the series.
        ConstantTarget: it never changes.
    """
    for target in targets:
        index = series.column(target)
        if target in scaler.constant:
            raise ConstantTarget(
                f"{series.name}: target {target!r} is always {scaler.mean[index]:g} in the training part; "
                f"expected a column that changes"
            )


def ahead(series: Series, targets: Sequence[int], horizons: Sequence[int], spans: Spans) -> Floats:
    """What comes true: (rows of the spans, horizons, targets), NaN where it is missing, past a gap, or outside its span."""
    truth = np.full((rows_of(spans), len(horizons), len(targets)), np.nan, np.float32)
    for place, first, end in placed(series, spans):
        for index, horizon in enumerate(horizons):
            if end - first > horizon:
                truth[place : place + end - first - horizon, index] = series.values[
                    first + horizon : end, list(targets)
                ]
    return truth


def placed(series: Series, spans: Spans) -> Iterator[tuple[int, int, int]]:
    """Each stretch (first, end) of the spans, and before it where its first row stands when the spans are laid end to end."""
    before = 0
    for span in spans:
        for first, end in series.stretches((span,)):
            yield before + first - span[0], first, end
        before += span[1] - span[0]


def steps_s_of(times: Times) -> npt.NDArray[np.float64]:
    """The seconds from each row to the next: (time - 1,)."""
    # Looked at as whole numbers, which spares a copy: these are the largest arrays beside the values.
    return np.diff(times.astype("datetime64[ns]", copy=False)).view(np.int64) / 1e9


def inner_steps_s(times: Times, groups: Sequence[Group]) -> npt.NDArray[np.float64]:
    """The same without the steps from a group to the next."""
    steps_s = steps_s_of(times)
    return np.delete(steps_s, [group.first - 1 for group in groups[1:]]) if len(groups) > 1 else steps_s


def iso(time: np.datetime64) -> str:
    """ISO 8601, with a fraction only where there is one."""
    whole = time.astype("datetime64[s]")
    return str(whole if whole == time else time)
