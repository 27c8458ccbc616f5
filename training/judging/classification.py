"""Scores of a classification, beside the class frequencies of the training part and a linear classifier."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from tidegate.training.data.series import UNLABELLED, Floats, Ints, Series, Spans, count_rows
from tidegate.training.data.split import Split
from tidegate.training.errors import SeriesTooShort, SettingsError
from tidegate.training.judging import metrics
from tidegate.training.judging.linear_classifier import fit_classifier
from tidegate.training.judging.scores import ClassError, ClassScores, Confidence

# Bins of the reliability diagram.
BINS = 10


def labels_of(series: Series, classes: Sequence[str]) -> Ints:
    """(time,) the labels with the class numbers of the graph, `UNLABELLED` if unknown.

    Raises:
        SettingsError: there are no labels, or the graph does not know a class.
    """
    if series.labels is None:
        raise SettingsError(f"label: {series.name} has no labels to score; name their column with --label")
    unknown = [name for name in series.classes if name not in classes]
    if unknown:
        raise SettingsError(
            f"label: {series.name} has the class {unknown[0]!r}, expected one that the model knows: {', '.join(classes)}"
        )
    numbers = np.array([*(classes.index(name) for name in series.classes), UNLABELLED], np.int64)
    return numbers[series.labels]  # UNLABELLED is -1, the last one


def score_classes(
    series: Series, classes: Sequence[str], spans: Spans, probability: Floats, split: Split | None
) -> ClassScores:
    """Score probabilities (rows of the spans, classes); the labels of the series have the numbers of the classes.

    Raises:
        SeriesTooShort: no row of the spans has a label.
    """
    assert series.labels is not None  # see `labels_of`
    truth = np.concatenate([series.labels[first:end] for first, end in spans])
    recording = np.repeat(np.arange(len(spans)), [end - first for first, end in spans])
    known = truth != UNLABELLED
    if not known.any():
        raise SeriesTooShort(f"{series.name}: none of {len(truth)} rows has a label to score; give labelled rows")
    score = partial(_error, truth=truth[known], recording=recording[known])
    linear = fit_classifier(series, split) if split else None
    counts = np.bincount(truth[known], minlength=len(classes))
    learned = _label_counts(series, split.train) if split else np.ones(len(classes), np.int64)
    return ClassScores(
        classes=tuple(classes),
        count=int(known.sum()),
        recordings=len(np.unique(recording[known])),
        model=score(probability[known]),
        frequencies=score(_frequencies(series, split, spans)[known]) if split else None,
        linear=score(linear.probability(series, spans)[known]) if linear else None,
        confusion=tuple(
            tuple(int(count) for count in row)
            for row in metrics.confusion_matrix(truth[known], probability[known].argmax(axis=1), len(classes))
        ),
        confidence=_confidence(probability[known], truth[known]),
        unlearned=tuple(
            name for name, here, before in zip(classes, counts, learned, strict=True) if here and not before
        ),
    )


def _frequencies(series: Series, split: Split, spans: Spans) -> Floats:
    """(rows of the spans, classes): the frequencies of the training part, plus one of each class, so that none is zero."""
    counts = _label_counts(series, split.train) + 1
    return np.broadcast_to((counts / counts.sum()).astype(np.float32), (count_rows(spans), len(counts)))


def _label_counts(series: Series, spans: Spans) -> Ints:
    """(classes,) the labelled rows of each class in the spans."""
    assert series.labels is not None  # see `labels_of`
    labels = np.concatenate([series.labels[first:end] for first, end in spans])
    return np.bincount(labels[labels != UNLABELLED], minlength=len(series.classes))


def _error(probability: Floats, *, truth: Ints, recording: Ints) -> ClassError:
    """The errors of probabilities (n, classes), given the true class (n,) and the number of the recording (n,)."""
    predicted = probability.argmax(axis=1)
    confusion = metrics.confusion_matrix(truth, predicted, probability.shape[1])
    surprise = metrics.surprise(probability, truth)
    entropy = float(surprise.mean())
    return ClassError(
        accuracy=metrics.accuracy(confusion),
        macro_f1=metrics.macro_f1(confusion),
        cross_entropy=entropy,
        perplexity=float(np.exp(entropy)),
        recording_accuracy=_share_of_recordings(probability, truth, recording),
        recording_cross_entropy=_balanced(surprise, recording),
    )


def _share_of_recordings(probability: Floats, truth: Ints, recording: Ints) -> float:
    """The share of the recordings whose class is right.

    That of the model is the class with the largest mean probability, that of the recording its most frequent label.
    """
    recordings, place = np.unique(recording, return_inverse=True)
    shape = (len(recordings), probability.shape[1])
    believed, labelled = np.zeros(shape), np.zeros(shape, np.int64)
    np.add.at(believed, place, probability)
    np.add.at(labelled, (place, truth), 1)
    return float((believed.argmax(axis=1) == labelled.argmax(axis=1)).mean())


def _balanced(values: metrics.Doubles, recording: Ints) -> float:
    """The mean over recordings of their means: a long recording counts as much as a short one."""
    counts = np.bincount(recording)
    means = np.bincount(recording, weights=values) / np.maximum(counts, 1)
    return float(means[counts > 0].mean())


def _confidence(probability: Floats, truth: Ints) -> tuple[Confidence, ...]:
    """The accuracy of the likeliest class, by its probability; empty bins are left out."""
    likeliest, right = probability.max(axis=1).astype(np.float64), probability.argmax(axis=1) == truth
    place = np.minimum((likeliest * BINS).astype(np.int64), BINS - 1)
    bins = [(number, place == number) for number in range(BINS)]
    return tuple(
        Confidence(
            number / BINS,
            (number + 1) / BINS,
            int(inside.sum()),
            float(likeliest[inside].mean()),
            float(right[inside].mean()),
        )
        for number, inside in bins
        if inside.any()
    )
