"""How a series is split: rows that teach, rows that choose, and rows that are held out and judge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.series import Group, Series, Spans
from training.errors import SeriesTooShort, SplitError


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
