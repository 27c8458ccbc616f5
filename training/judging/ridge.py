"""Ridge autoregression: a linear model of the last few values, the fitted baseline of a forecast.

It is fitted in closed form in float64 (Hoerl and Kennard, Ridge Regression, Technometrics 12, 1970), on the training part
alone. The validation part selects the number of lags and the ridge penalty. It sees what a network sees: a missing value is
replaced by the last observed one, and by the training mean before the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tidegate.training.data.features import ELAPSED
from tidegate.training.data.future import ALL, FutureValues, Some
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Floats, Ints, Series, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging.baselines import columns_at_once
from tidegate.training.judging.least_squares import (
    BLOCK,
    PENALTIES,
    Inputs,
    NormalEquations,
    linear_inputs,
    one_thread,
    row_indices,
    subsample,
)
from tidegate.training.judging.metrics import Bools, Doubles

# The candidate numbers of lags, the present value among them: up to four days of hourly values, and two weeks. One season
# and two are others, which see the same time of the last season.
LAGS = (1, 8, 96, 336)
# All windows of a stream together: more than some ten kilobytes of state are felt with thousands of streams.
MAX_WINDOWS = 2700
# More lags cost more time, in each step of a served stream too, and improve no forecast.
MAX_LAGS = 340
# A regression with fewer rows for each lag follows the noise.
ROWS_PER_LAG = 8
# So many rows, evenly chosen, tell the candidates apart.
JUDGED_ROWS = 2048
# Candidates are also fitted on this first share of the training part and judged on the rest of it. One validation part
# alone is often too short to tell whether a series returns to its mean or drifts.
EARLY_SHARE = 0.6
KINDS = 4  # of lines, see `Ridge`
LEVELLED = 2  # from this kind on a line knows the level
# A kind of line that knows more must be better by so much.
BETTER = 0.99
# All horizons share one matrix if this share of the rows that any horizon can use serves all.
SHARED_ROWS = 0.8


@dataclass(frozen=True)
class Line:
    """A fitted regression for one target and horizon, in scaled units; it forecasts the change from the present value."""

    lags: int
    penalty: float
    window: Doubles  # (lags - 1,), of the values before the present one less that one, the latest first
    features: Doubles  # (features,), all zero for a line that holds at every level
    intercept: float


@dataclass(frozen=True)
class Ridge:
    """Direct ridge autoregression: a regression for each target and horizon.

    There are four kinds. The first knows the past of the target less its present value, and forecasts the change: it holds
    at every level. The second has an intercept as well, so it may go on with a trend. The third knows the level too, and the
    fourth all features; their penalty draws them to a constant.

    It minimises squared errors, but is also scored by absolute ones. So the median of its errors on the training part is
    added; without it, on a spiky target, it would be worse than a constant.

    A new stream has no long past. So there are lines for each number of lags, and those with the most that are there
    forecast.
    """

    targets: tuple[int, ...]
    lags: tuple[int, ...]  # rising from 1
    lines: tuple[tuple[tuple[Line, ...], ...], ...]  # (lags, targets, horizons)
    mean: Floats
    std: Floats

    @property
    def level_share(self) -> float:
        """The share of the lines with the most lags that know a level."""
        lines = [line for target in self.lines[-1] for line in target]
        return sum(bool(line.features.any()) for line in lines) / len(lines)

    def weights(self) -> tuple[Doubles, Doubles, Doubles]:
        """Window (lags, targets, most lags - 1, horizons), features (lags, targets, features, horizons) and intercepts (lags, targets, horizons)."""
        window, features = (
            np.array([[[part(line) for line in lines] for lines in lag] for lag in self.lines]).swapaxes(2, 3)
            for part in (lambda line: np.pad(line.window, (0, self.lags[-1] - line.lags)), lambda line: line.features)
        )
        return window, features, np.array([[[line.intercept for line in lines] for lines in lag] for lag in self.lines])

    @cached_property
    def _weights(self) -> tuple[Doubles, Doubles]:
        """Those of window and features as one, and the intercepts."""
        window, features, intercepts = self.weights()
        return np.concatenate([window, features], axis=2), intercepts

    def forecast(self, series: Series, spans: Spans) -> Floats:
        """(rows of the spans, horizons, targets). It reads rows before a span too."""
        return RidgeForecasts(self, series).at(row_indices(spans))

    def error_quantiles(
        self, series: Series, horizons: Sequence[int], spans: Spans, levels: Sequence[float]
    ) -> Doubles:
        """Quantiles of true value less forecast on evenly chosen rows, in scaled units: (levels, horizons, targets)."""
        rows = subsample(row_indices(spans))
        forecasts, truth = RidgeForecasts(self, series), FutureValues(series, self.targets, horizons, spans)
        found = np.empty((len(levels), *truth.shape))
        for some, target in columns_at_once(truth.shape, len(rows)):
            part = some, slice(target, target + 1)
            errors = (truth.at(rows, *part) - forecasts.at(rows, *part)) / self.std[self.targets[target]]
            found[:, some, target] = np.nanquantile(errors[..., 0], levels, axis=0)
        return found


class RidgeForecasts:
    """The forecasts of a ridge for the rows of a series; it reads the rows before them too."""

    def __init__(self, ridge: Ridge, series: Series) -> None:
        self._ridge = ridge
        self._inputs = linear_inputs(series, ridge.mean, ridge.std)

    def at(self, rows: Ints, horizons: Some = ALL, targets: Some = ALL) -> Floats:
        """(rows, horizons, targets)."""
        ridge, inputs = self._ridge, self._inputs
        weights, intercepts = (part[..., horizons] for part in ridge._weights)  # noqa: SLF001  of the same file
        everything = range(inputs.values.shape[1])
        places = np.arange(len(ridge.targets))[targets]
        # The most lags that the segment of a row has.
        usable = np.searchsorted(ridge.lags, rows - inputs.begins[rows] + 1, side="right") - 1
        forecast = np.empty((len(rows), weights.shape[-1], len(places)), np.float32)
        for column, place in enumerate(places):
            target = ridge.targets[place]
            for low in range(0, len(rows), BLOCK):
                block = slice(low, low + BLOCK)
                design = inputs.centred(rows[block], target, ridge.lags[-1], everything)
                scaled = np.empty((len(design), forecast.shape[1]))
                for lags in np.unique(usable[block]):
                    own = usable[block] == lags
                    scaled[own] = design[own] @ weights[lags, place] + intercepts[lags, place]
                scaled += inputs.values[rows[block], target].astype(np.float64)[:, None]
                forecast[block, :, column] = scaled * float(ridge.std[target]) + float(ridge.mean[target])
        return forecast


@one_thread()
def fit_ridge(
    series: Series, split: Split, targets: Sequence[int], horizons: Sequence[int], *, season: int | None
) -> Ridge | None:
    """Fit on the training part, and select lags, kind and penalty on the rows that follow.

    Args:
        series: to forecast; the held-out part is not read.
        split: of the series.
        targets: features.
        horizons: in timesteps.
        season: in timesteps, if known.

    Returns:
        None if a horizon has no true value in the training or the validation part.
    """
    scaler = fit_scaler(series, split.train)
    inputs = linear_inputs(series, scaler.mean, scaler.std)
    early, late = _cut(split.train)
    parts = [
        _Part(
            subsample(row_indices(spans)),
            FutureValues(series, targets, horizons, spans),
            scaler.mean[list(targets)],
            scaler.std[list(targets)],
            ALL,
            ALL,
        )
        for spans in (early, late, split.train, split.validation)
    ]
    known = [part.is_known_everywhere() for part in parts]
    if not (known[2] and known[3]):
        return None
    folds = [parts[:2], parts[2:]] if known[0] and known[1] else [parts[2:]]
    # The network takes the logarithm of elapsed time, so a line on it would not be the same there.
    others = [column for column, name in enumerate(series.names) if name != ELAPSED]
    candidates = _candidates(season, len(folds[0][0].rows), MAX_WINDOWS // len(targets))
    fitted = [
        _fit_target(inputs, target, candidates, others, [[part.of(place) for part in fold] for fold in folds])
        for place, target in enumerate(targets)
    ]
    lines = tuple(zip(*fitted, strict=True))  # (lags, targets, horizons)
    most = max(line.lags for target in lines[-1] for line in target)
    kept = candidates.index(most) + 1
    return Ridge(tuple(targets), tuple(candidates[:kept]), lines[:kept], scaler.mean, scaler.std)


def _cut(spans: Spans) -> tuple[Spans, Spans]:
    """The first rows of each span, and the others."""
    cuts = [(first, first + int((end - first) * EARLY_SHARE), end) for first, end in spans]
    return tuple((first, cut) for first, cut, _ in cuts), tuple((cut, end) for _, cut, end in cuts)


def _candidates(season: int | None, rows: int, longest: int) -> list[int]:
    """The numbers of lags to try, rising."""
    seasonal = (season + 1, 2 * season) if season else ()
    most = min(MAX_LAGS, max(min(rows // ROWS_PER_LAG, longest), 1))
    return sorted({lags for lags in (*LAGS, *seasonal) if lags <= most})


@dataclass(frozen=True)
class _Part:
    """Rows to fit or to judge on, and their true values in scaled units, which are made block by block."""

    rows: Ints
    future: FutureValues
    mean: Floats  # of the targets
    std: Floats
    horizons: Some
    targets: Some

    def of(self, target: int) -> "_Part":
        """Of one target."""
        return replace(self, targets=slice(target, target + 1))

    def truth(self, rows: Ints) -> Floats:
        """(rows, horizons) of one target, NaN where unknown."""
        return self._values(rows)[..., 0]

    def _values(self, rows: Ints) -> Floats:
        values = self.future.at(rows, self.horizons, self.targets)
        scaled: Floats = (values - self.mean[self.targets]) / self.std[self.targets]
        return scaled

    def blocks(self, rows: Ints) -> Iterator[tuple[Ints, Floats]]:
        """Rows and their true values (rows, horizons), block by block."""
        for low in range(0, len(rows), BLOCK):
            yield rows[low : low + BLOCK], self.truth(rows[low : low + BLOCK])

    def known(self) -> tuple[Bools, Bools]:
        """(rows,) whether all true values of a row are known, and whether any is."""
        known = [~np.isnan(truth) for _, truth in self.blocks(self.rows)]
        return np.concatenate([part.all(axis=1) for part in known]), np.concatenate(
            [part.any(axis=1) for part in known]
        )

    def is_known_everywhere(self) -> bool:
        """Whether each horizon of each target has a true value."""
        found = np.zeros(self.future.shape, np.bool_)
        for low in range(0, len(self.rows), BLOCK):
            found |= (~np.isnan(self._values(self.rows[low : low + BLOCK]))).any(axis=0)
        return bool(found.all())

    def sample(self) -> tuple[Ints, Floats]:
        """Evenly chosen rows of those with any true value, and their true values."""
        rows = self.rows[self.known()[1]]
        rows = rows[:: max(-(-len(rows) // JUDGED_ROWS), 1)]
        return rows, self.truth(rows)


def _fit_target(
    inputs: Inputs, target: int, candidates: Sequence[int], others: Sequence[int], folds: Sequence[Sequence[_Part]]
) -> tuple[tuple[Line, ...], ...]:
    """The lines (lags, horizons) of one target, by their mean error over the folds; the last fold is that of the lines.

    A fold has a part to fit on, and one to judge on.
    """
    whole, some = folds[-1][0].known()
    horizons = range(folds[-1][0].future.shape[0])
    shared = whole.sum() >= SHARED_ROWS * some.sum()
    lines: list[list[Line]] = [[] for _ in candidates]
    for chosen in [list(horizons)] if shared else [[index] for index in horizons]:
        fits = [
            _Fits.of(inputs, target, candidates, others, *[replace(part, horizons=chosen) for part in fold])
            for fold in folds
        ]
        errors = np.array([fit.errors for fit in fits])  # (folds, candidates, penalties, outputs)
        for most, own in enumerate(lines, 1):
            own += [
                _mean_line([fits[-1].line(*place, output) for place in _choose(errors[:, : most * KINDS, :, output])])
                for output in range(len(chosen))
            ]
    return tuple(tuple(own) for own in lines)


def _choose(errors: Doubles) -> list[tuple[int, int]]:
    """Candidate and penalty of the lines to take the mean of; `errors` are (folds, candidates, penalties).

    The kinds of lines alternate along the candidates. A kind that knows more replaces those before where it is better in
    every fold. Where the folds differ, a level that drifts away may mislead it, so it gets only a share.
    """
    best: list[tuple[int, int]] = []
    for kind in range(KINDS):
        own = errors[:, kind::KINDS]
        number, penalty = np.unravel_index(own.mean(axis=0).argmin(), own.shape[1:])
        found = int(number) * KINDS + kind, int(penalty)
        ratio = errors[:, *found] / np.mean([errors[:, *place] for place in best], axis=0) if best else np.zeros(1)
        if (ratio < BETTER).all():
            best = [found]
        elif ratio.mean() < BETTER:
            best.append(found)
    return best


def _mean_line(lines: list[Line]) -> Line:
    """The line whose forecast is the mean of theirs."""
    lags = max(line.lags for line in lines)
    windows = [np.pad(line.window, (0, lags - line.lags)) for line in lines]
    return Line(
        lags,
        lines[-1].penalty,
        np.mean(windows, axis=0),
        np.mean([line.features for line in lines], axis=0),
        float(np.mean([line.intercept for line in lines])),
    )


@dataclass(frozen=True)
class _Fits:
    """All candidates, fitted on one part and judged on another: each with its lags, its columns, and its kind."""

    target: int
    features: int
    others: Sequence[int]
    candidates: list[tuple[int, Ints, int]]
    solutions: list[tuple[Doubles, Doubles]]  # weights (columns, penalties, outputs), intercepts (penalties, outputs)
    errors: Doubles  # (candidates, penalties, outputs)

    @classmethod
    def of(
        cls, inputs: Inputs, target: int, lags: Sequence[int], others: Sequence[int], train: _Part, judged: _Part
    ) -> "_Fits":
        """Fit and judge."""
        longest = lags[-1] - 1
        own = longest + list(others).index(target)  # the column of the present value
        complete, _ = train.known()
        moments = NormalEquations.over(
            (inputs.centred(rows, target, lags[-1], others), truth)
            for rows, truth in train.blocks(train.rows[complete])
        )
        changes = moments.less(own)
        everything = longest + np.arange(len(others))
        candidates = [
            (count, np.concatenate([np.arange(count - 1), level]).astype(np.int64), kind)
            for count in lags
            for kind, level in enumerate((np.empty(0), np.empty(0), np.array([own]), everything))
        ]
        samples = [
            (inputs.centred(rows, target, lags[-1], others), truth) for rows, truth in (train.sample(), judged.sample())
        ]
        solutions, errors = [], []
        for _, columns, kind in candidates:
            change = kind < LEVELLED
            weights, intercepts = (changes.through_zero() if kind == 0 else changes if change else moments).solve(
                columns
            )
            fitted, missed = (
                (truth - design[:, [own]] * change)[:, None] - np.tensordot(design[:, columns], weights, 1) - intercepts
                for design, truth in samples
            )
            offset = np.nanmedian(fitted, axis=0) * (kind > 0)
            solutions.append((weights, intercepts + offset))
            errors.append(np.nanmean(np.abs(missed - offset), axis=0))
        return cls(target, inputs.values.shape[1], others, candidates, solutions, np.array(errors))

    def line(self, candidate: int, penalty: int, output: int) -> Line:
        """One line."""
        lags, _, kind = self.candidates[candidate]
        weights, intercepts = self.solutions[candidate]
        features = np.zeros(self.features)
        if kind >= LEVELLED:
            level = weights[lags - 1 :, penalty, output]
            features[self.others if len(level) > 1 else [self.target]] = level
            features[self.target] -= 1.0
        window = weights[: lags - 1, penalty, output]
        return Line(lags, PENALTIES[penalty], window, features, float(intercepts[penalty, output]))
