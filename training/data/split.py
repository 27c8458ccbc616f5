"""Splits of a series: the training part, the validation part, and the held-out part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.training.data.series import UNLABELLED, Group, Series, Spans
from tidegate.training.errors import SeriesTooShort, SplitError


@dataclass(frozen=True)
class Split:
    """The rows of the training part, the validation part, and the held-out part (`test`).

    `short` names the groups that are too short to be cut; they lie in the training part.
    """

    train: Spans
    validation: Spans
    test: Spans
    short: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, Spans]]:
        """Each part with its name."""
        return iter((("training", self.train), ("validation", self.validation), ("held-out", self.test)))


def split_by_time(series: Series, *, train: float, validation: float, horizon: int) -> Split:
    """Cut every group in time, at two of its rows, so that no part has seen a later one.

    A group that is too short for three parts lies in the training part.

    Args:
        series: to split.
        train: share of the rows in the training part.
        validation: share of the rows in the validation part; the rest is held out.
        horizon: the largest horizon of a forecast; 0 without forecasts.

    Raises:
        SeriesTooShort: no group is long enough.
    """
    groups = series.groups or (Group(series.name, 0, len(series)),)
    cuts = [
        (group.first + int(rows * train), group.first + int(rows * (train + validation)))
        for group in groups
        for rows in [group.end - group.first]
    ]
    splittable = [
        min(train_end - group.first, validation_end - train_end, group.end - validation_end) >= _min_rows(horizon)
        for group, (train_end, validation_end) in zip(groups, cuts, strict=True)
    ]
    if not any(splittable):  # cut the longest nevertheless, so that the check below reports it
        longest = int(np.argmax([group.end - group.first for group in groups]))
        splittable[longest] = True
    split = Split(
        train=tuple(
            (group.first, train_end if enough else group.end)
            for group, (train_end, _), enough in zip(groups, cuts, splittable, strict=True)
        ),
        validation=tuple(cut for cut, enough in zip(cuts, splittable, strict=True) if enough),
        test=tuple((cut[1], group.end) for group, cut, enough in zip(groups, cuts, splittable, strict=True) if enough),
        short=tuple(group.name for group, enough in zip(groups, splittable, strict=True) if not enough),
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
    """Assign whole persons, machines or sites (`Group.split_key`) to the parts; the network never sees those held out.

    The assignment is random. The shares of the rows are as near as whole keys allow.

    Args:
        series: to split.
        train: share of the rows in the training part.
        validation: share of the rows in the validation part; the rest is held out.
        seed: of the assignment.
        hold_out: hold out these keys and no others; the rest is divided between the other two parts.
        validate: with `hold_out`: validate on these keys and train on the rest.
        horizon: the largest horizon of a forecast; 0 without forecasts.

    Raises:
        SplitError: there are fewer than three keys, a named key does not exist, or no key is left for training.
        SeriesTooShort: no group of some part is long enough.
    """
    rows: dict[str, int] = {}
    for group in series.groups:
        rows[group.split_key] = rows.get(group.split_key, 0) + group.end - group.first
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
    part_of = dict.fromkeys(hold_out, 2) | _assign_parts(free, shares, np.random.default_rng(seed))
    return _split_of(series, part_of, horizon)


def _named_parts(
    series: Series, names: Sequence[str], hold_out: Sequence[str], validate: Sequence[str]
) -> dict[str, int]:
    """The part of each key, if the validation part and the held-out part are named."""
    wrong = [name for name in validate if name not in names or name in hold_out]
    if wrong or not hold_out:
        raise SplitError(
            f"validate-on: got {', '.join(wrong or validate)}, expected values of {', '.join(names)} that are not held out, "
            f"beside --hold-out"
        )
    parts = dict.fromkeys(names, 0) | dict.fromkeys(validate, 1) | dict.fromkeys(hold_out, 2)
    if 0 not in parts.values():
        raise SplitError(f"validate-on: {series.name} has only {', '.join(names)}; leave at least one to train on")
    return parts


def _split_of(series: Series, part_of: dict[str, int], horizon: int) -> Split:
    """The spans of each part."""
    train_spans, validation, test = (
        tuple((group.first, group.end) for group in series.groups if part_of[group.split_key] == part)
        for part in range(3)
    )
    split = Split(train_spans, validation, test)
    check_parts(series, split, horizon)
    return split


def _assign_parts(rows: dict[str, int], shares: Sequence[float], rng: np.random.Generator) -> dict[str, int]:
    """The part of each key: at least one key in each part, and shares of the rows as near as single moves bring them."""
    names = [str(name) for name in rng.permutation(list(rows))]
    goal = np.array(shares) / sum(shares) * sum(rows.values())
    got = np.zeros(len(shares))
    parts: dict[str, int] = {}
    for place, name in enumerate(names):
        empty = np.flatnonzero(got == 0)
        # The last keys go to the parts that have none yet.
        part = int(empty[0]) if len(empty) >= len(names) - place else int(np.argmax(goal - got))
        parts[name] = part
        got[part] += rows[name]
    while move := _best_move(rows, parts, got - goal):
        name, part = move
        got[parts[name]] -= rows[name]
        got[part] += rows[name]
        parts[name] = part
    return parts


def _best_move(
    rows: dict[str, int], parts: dict[str, int], excess: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> tuple[str, int] | None:
    """The key and its new part that improve the shares most; None if no move improves them."""
    left = np.bincount(list(parts.values()), minlength=len(excess))
    best, gain = None, 1e-9  # rounding is no improvement
    for name, part in parts.items():
        for other in range(len(excess)):
            if other == part or left[part] == 1:
                continue
            before = abs(excess[part]) + abs(excess[other])
            after = abs(excess[part] - rows[name]) + abs(excess[other] + rows[name])
            if before - after > gain:
                best, gain = (name, other), before - after
    return best


def _min_rows(horizon: int) -> int:
    """The rows that a part needs: for two forecasts and their true values."""
    return horizon + 2


def check_parts(series: Series, split: Split, horizon: int) -> None:
    """Check that each part has a stretch without a gap that holds at least one forecast and its true value.

    Raises:
        SeriesTooShort: a part has none.
    """
    least = _min_rows(horizon)
    for part, spans in split:
        rows = max((end - first for first, end in spans), default=0)
        longest = max((end - first for first, end in series.segments(spans)), default=0)
        if longest >= least:
            continue
        for_what = f" for a horizon of {horizon} steps" if horizon else ""
        if rows >= least:
            fewer = "smaller --horizons" if horizon else "more rows in a row"
            raise SeriesTooShort(
                f"{series.name}: gaps cut the {part} part into stretches of at most {longest} rows, expected one of at least "
                f"{least}{for_what}; give {fewer}, or let --fill-gaps turn longer gaps into missing values"
            )
        of = f" of {len(series)}" if len(spans) == 1 else " in the longest of its groups"
        what = "give more rows or smaller --horizons" if horizon else "give more"
        raise SeriesTooShort(
            f"{series.name}: the {part} part has {rows}{of} rows, expected at least {least}{for_what}; {what}"
        )


def check_truth(series: Series, split: Split, targets: Sequence[int], horizons: Sequence[int]) -> None:
    """Check that each part has a true value of each target at each horizon: without one nothing is learned or scored.

    Raises:
        SeriesTooShort: a part has none.
    """
    known = ~np.isnan(series.values[:, list(targets)])
    for part, spans in split:
        segments = series.segments(spans)
        for horizon in horizons:
            seen = np.any([known[first + horizon : end].any(axis=0) for first, end in segments], axis=0)
            if not seen.all():
                name = series.names[targets[int(seen.argmin())]]
                raise SeriesTooShort(
                    f"{series.name}: target {name!r} has no value {horizon} steps after the start of a stretch in the {part} "
                    f"part, expected one to forecast; give more rows, smaller --horizons, or another --target"
                )


def check_labels(series: Series, split: Split) -> None:
    """Check that each part has a labelled row.

    Raises:
        SeriesTooShort: a part has none.
    """
    assert series.labels is not None  # the caller has checked
    for part, spans in split:
        if not any((series.labels[first:end] != UNLABELLED).any() for first, end in spans):
            raise SeriesTooShort(
                f"{series.name}: no row of the {part} part has a class in column {series.label_column!r}; label some, or "
                f"choose other shares with --train-share and --validation-share"
            )
