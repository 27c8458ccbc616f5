"""Scores of a graph that classifies, beside the training part's class frequencies and a linear classifier."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from training.data.series import UNLABELLED, Floats, Ints, Series, Spans, rows_of
from training.data.split import Split
from training.errors import SeriesTooShort, SettingsError
from training.judging import metrics
from training.judging.ridge import fit_classifier
from training.judging.scores import ClassError, ClassScores, Confidence

# Of the reliability diagram.
BINS = 10


def labels_of(series: Series, classes: Sequence[str]) -> Ints:
    """(time,) the labels as the graph numbers its classes, `UNLABELLED` where unknown.

    Raises:
        SettingsError: there are no labels, or one that the graph does not know.
    """
    if series.labels is None:
        raise SettingsError(f"label: {series.name} has no labels to score; name their column with --label")
    strange = [name for name in series.classes if name not in classes]
    if strange:
        raise SettingsError(
            f"label: {series.name} has the class {strange[0]!r}, expected one that the model knows: {', '.join(classes)}"
        )
    numbers = np.array([*(classes.index(name) for name in series.classes), UNLABELLED], np.int64)
    return numbers[series.labels]  # UNLABELLED is -1, the last one


def score_classes(
    series: Series, classes: Sequence[str], spans: Spans, probability: Floats, split: Split | None
) -> ClassScores:
    """Score probabilities (rows of the spans, classes); `labels` of the series are numbered as the classes.

    Raises:
        SeriesTooShort: no row of the spans has a label.
    """
    assert series.labels is not None  # see `labels_of`
    truth = np.concatenate([series.labels[first:end] for first, end in spans])
    recording = np.repeat(np.arange(len(spans)), [end - first for first, end in spans])
    known = truth != UNLABELLED
    if not known.any():
        raise SeriesTooShort(f"{series.name}: none of {len(truth)} rows has a label to score; give labelled rows")
    judge = partial(_error, truth=truth[known], recording=recording[known])
    linear = fit_classifier(series, split) if split else None
    return ClassScores(
        classes=tuple(classes),
        count=int(known.sum()),
        recordings=len(np.unique(recording[known])),
        model=judge(probability[known]),
        frequencies=judge(_frequencies(series, split, spans)[known]) if split else None,
        linear=judge(linear.probability(series, spans)[known]) if linear else None,
        confusion=tuple(
            tuple(int(count) for count in row)
            for row in metrics.confusion_matrix(truth[known], probability[known].argmax(axis=1), len(classes))
        ),
        confidence=_confidence(probability[known], truth[known]),
    )


def _frequencies(series: Series, split: Split, spans: Spans) -> Floats:
    """(rows of the spans, classes): the shares of the training part; one more of each class, so that none is impossible."""
    assert series.labels is not None  # see `labels_of`
    taught = np.concatenate([series.labels[first:end] for first, end in split.train])
    counts = np.bincount(taught[taught != UNLABELLED], minlength=len(series.classes)) + 1
    return np.broadcast_to((counts / counts.sum()).astype(np.float32), (rows_of(spans), len(counts)))


def _error(probability: Floats, *, truth: Ints, recording: Ints) -> ClassError:
    """Of (n, classes) beside what is true (n,) and the number of the recording (n,)."""
    guess = probability.argmax(axis=1)
    confusion = metrics.confusion_matrix(truth, guess, probability.shape[1])
    surprise = metrics.surprise(probability, truth)
    entropy = float(surprise.mean())
    return ClassError(
        accuracy=metrics.accuracy(confusion),
        macro_f1=metrics.macro_f1(confusion),
        cross_entropy=entropy,
        perplexity=float(np.exp(entropy)),
        recording_accuracy=_balanced((guess == truth).astype(np.float64), recording),
        recording_cross_entropy=_balanced(surprise, recording),
    )


def _balanced(values: metrics.Doubles, recording: Ints) -> float:
    """The mean over recordings of each one's mean: a long recording counts as much as a short one."""
    counts = np.bincount(recording)
    means = np.bincount(recording, weights=values) / np.maximum(counts, 1)
    return float(means[counts > 0].mean())


def _confidence(probability: Floats, truth: Ints) -> tuple[Confidence, ...]:
    """How often the likeliest class was right, by its probability; bins without a timestep are left out."""
    said, right = probability.max(axis=1).astype(np.float64), probability.argmax(axis=1) == truth
    place = np.minimum((said * BINS).astype(np.int64), BINS - 1)
    bins = [(number, place == number) for number in range(BINS)]
    return tuple(
        Confidence(
            number / BINS,
            (number + 1) / BINS,
            int(inside.sum()),
            float(said[inside].mean()),
            float(right[inside].mean()),
        )
        for number, inside in bins
        if inside.any()
    )
