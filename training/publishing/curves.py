"""The curves of a report: arrays from the replay of the held-out part.

Errors are forecast minus true value, in the unit of the target, at the time of the true value. This module knows no SVG.
"""

from collections.abc import Sequence

import numpy as np

from tidegate.training.data.series import Span, Times
from tidegate.training.judging.replay import Numbers, Replay

# Timesteps across the page: enough to show days of ten-minute data, few enough to show single ones.
WINDOW = 432
# Candidate windows begin this fraction of their length apart.
STRIDE = 8
BINS = 31  # of a histogram of errors; odd, so that an error of zero has a bar in the middle
TAIL = 0.02  # share of the errors beyond the outermost bars, which count them


def typical_window(replay: Replay, target: int) -> Span:
    """The window of `WINDOW` rows to draw: among the more active half of all windows, the one with the most typical error.

    An active window changes from row to row. A typical error is nearest to the mean over all rows and the horizons that the
    replay has kept. So the window is neither quiet, nor the best or the worst.
    """
    truth = replay.truth[:, target]
    errors = np.stack([np.abs(replay.errors(index)[:, target]) for index in replay.kept], axis=1)
    mean_errors = _means(errors)
    changes = np.abs(np.diff(truth, prepend=np.nan))
    longest = max(end - first for first, end in replay.segments)
    length = min(WINDOW, longest)
    # The first rows of a stream have no forecast of the largest horizon. They are used only if there are no others.
    skip = min(max(replay.horizons), longest - length)
    starts = [
        place
        for first, end in replay.segments
        for place in range(first + skip, end - length + 1, max(length // STRIDE, 1))
    ]
    activity = [float(_means(changes[place : place + length, None])[0]) for place in starts]
    middle = float(np.nanmedian(activity)) if np.isfinite(activity).any() else 0.0
    chosen, least = starts[0], np.inf
    for place, active in zip(starts, activity, strict=True):
        means = _means(errors[place : place + length])
        known = np.isfinite(means) & np.isfinite(mean_errors) & (mean_errors > 0)
        gap = float(np.abs(means[known] / mean_errors[known] - 1.0).mean()) if known.any() else np.inf
        if active >= middle and gap < least:
            chosen, least = place, gap
    return chosen, chosen + length


def bin_edges(errors: Sequence[Numbers]) -> Numbers:
    """(BINS + 1,) the edges of bars around zero that hold most errors of each array."""
    known = [np.abs(part[np.isfinite(part)]) for part in errors]
    reach = max((float(np.quantile(part, 1 - TAIL)) for part in known if len(part)), default=0.0) or 1.0
    return np.linspace(-reach, reach, BINS + 1)


def histogram(errors: Numbers, edges: Numbers) -> Numbers:
    """(BINS,) the share of the errors in each bar; the outermost bars include all errors beyond."""
    known = errors[np.isfinite(errors)]
    counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
    return counts / max(len(known), 1)


def error_by_hour(times: Times, errors: Numbers) -> Numbers:
    """(24,) the mean absolute error in each hour of the day; NaN for an hour without data."""
    hours = (times.astype("datetime64[h]").astype(np.int64)) % 24
    return np.array([_means(np.abs(errors[hours == hour])[:, None])[0] for hour in range(24)])


def _means(values: Numbers) -> Numbers:
    """(rows, n) -> (n,) the means without NaN; NaN if all is NaN."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    means: Numbers = np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return means
