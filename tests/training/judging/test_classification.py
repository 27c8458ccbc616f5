"""Scores of classes, through a real graph, beside the formulas and the baselines."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tidegate.training import errors
from tidegate.training.data.series import Group, Series
from tidegate.training.data.split import Split
from tidegate.training.judging.classification import score_classes
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.verdict import verdict

HOURS = np.datetime64("2024-01-01T00", "ns") + np.arange(100) * np.timedelta64(3600, "s")


@pytest.fixture
def labelled(make_series: Callable[..., Series]) -> Series:
    """Four recordings of different lengths; a tenth of the rows has no label, the rest says whether a sensor is high."""
    series = make_series(1000)
    names = ("idle", "walk")
    labels = (series.values[:, 0] > 22).astype(np.int64)
    labels[::10] = -1
    groups = (Group("a", 0, 300), Group("b", 300, 500), Group("c", 500, 900), Group("d", 900, 1000))
    return replace(series, labels=labels, classes=names, groups=groups)


SPLIT = Split(train=((0, 300),), validation=((300, 500),), test=((500, 900), (900, 1000)))


def test_the_scores_are_those_of_the_replayed_probabilities(classifier: Graph, labelled: Series) -> None:
    """Each recording a stream of its own, numbered as the graph numbers its classes, without the unlabelled rows."""
    from sklearn import metrics as oracle  # slow to load

    scores = evaluate(classifier, labelled, split=SPLIT).classification
    sentence = [
        classifier.replay(labelled.values[first:end, None])[0]["probability"][:, 0] for first, end in SPLIT.test
    ]
    probability = np.concatenate(sentence).astype(np.float64)
    probability /= probability.sum(axis=1, keepdims=True)
    truth = np.array([0, 2, -1])[labelled.labels[500:]]
    known = truth >= 0
    guess = probability.argmax(axis=1)
    assert (scores.count, scores.recordings) == (450, 2)
    assert scores.model.accuracy == pytest.approx((guess == truth)[known].mean())
    assert scores.model.macro_f1 == pytest.approx(
        oracle.f1_score(truth[known], guess[known], average="macro", zero_division=0)
    )
    wanted = oracle.log_loss(truth[known], probability[known], labels=range(3))
    assert scores.model.cross_entropy == pytest.approx(wanted, rel=1e-5)
    assert scores.model.perplexity == pytest.approx(np.exp(wanted), rel=1e-5)
    np.testing.assert_array_equal(
        scores.confusion, oracle.confusion_matrix(truth[known], guess[known], labels=range(3))
    )


def test_baselines_learn_from_the_training_part(classifier: Graph, labelled: Series) -> None:
    """Frequencies say the most frequent class; the linear one, which reads the sensor, is nearly always right."""
    scores = evaluate(classifier, labelled, split=SPLIT).classification
    truth = labelled.labels[500:][labelled.labels[500:] >= 0]
    taught = labelled.labels[:300][labelled.labels[:300] >= 0]
    share = (np.bincount(taught, minlength=2) + 1) / (len(taught) + 3)
    assert scores.frequencies.accuracy == pytest.approx((truth == taught.mean().round()).mean())
    assert scores.frequencies.cross_entropy == pytest.approx(-np.log(share[truth]).mean(), rel=1e-5)
    assert scores.linear.accuracy > 0.85
    assert scores.linear.cross_entropy < scores.frequencies.cross_entropy
    assert not scores.wins


def test_without_a_training_part_there_are_no_baselines(classifier: Graph, labelled: Series) -> None:
    """Other data is scored all the same."""
    scores = evaluate(classifier, labelled).classification
    assert (scores.frequencies, scores.linear) == (None, None)
    assert scores.count == 900


def test_confidence_bins_hold_every_timestep(classifier: Graph, labelled: Series) -> None:
    """Each with what was said and how often that was right; together they give the accuracy."""
    scores = evaluate(classifier, labelled).classification
    assert sum(part.count for part in scores.confidence) == scores.count
    assert all(part.low <= part.said <= part.high for part in scores.confidence)
    right = sum(part.right * part.count for part in scores.confidence) / scores.count
    assert right == pytest.approx(scores.model.accuracy)


def test_data_without_labels_is_refused(classifier: Graph, make_series: Callable[..., Series]) -> None:
    """The message says how to name their column."""
    with pytest.raises(errors.SettingsError, match="--label"):
        evaluate(classifier, make_series(100))


def test_an_unknown_class_is_refused(classifier: Graph, labelled: Series) -> None:
    """The message names it and those that the model knows."""
    with pytest.raises(errors.SettingsError, match="class 'sleep', expected one that the model knows: idle, run, walk"):
        evaluate(classifier, replace(labelled, classes=("idle", "sleep")))


def test_rows_without_a_label_cannot_be_scored(classifier: Graph, labelled: Series) -> None:
    """When there is no other row, that is said."""
    labelled.labels[:] = -1
    with pytest.raises(errors.SeriesTooShort, match="label"):
        evaluate(classifier, labelled)


def test_by_recording_whole_recordings_are_counted() -> None:
    """A recording is right if the class with the largest mean probability is its most frequent label, however long it is."""
    split = Split(train=((0, 4),), validation=((4, 6),), test=((6, 9), (9, 10), (10, 14)))
    labels = np.array([0, 1, 0, 1, 0, 1, *(0, 0, 1), *(1,), *(1, 1, 1, 0)])
    probability = np.array([[0.4, 0.6], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7], *[[0.6, 0.4]] * 4], np.float32)
    series = Series(
        "toy", "", ("a",), ("",), np.zeros((14, 1), np.float32), HOURS[:14], 3600.0, labels=labels, classes=("x", "y")
    )
    series = replace(
        series,
        groups=tuple(Group(str(first), first, end) for first, end in (*split.train, *split.validation, *split.test)),
    )
    scores = score_classes(series, ("x", "y"), split.test, probability, split)
    assert scores.recordings == 3
    # The first is right although two of its three timesteps are wrong, the second is right, the third is wrong.
    assert scores.model.recording_accuracy == pytest.approx(2 / 3)


def test_a_class_that_only_the_held_out_part_has_cannot_be_known(classifier: Graph, labelled: Series) -> None:
    """No baseline knows it either: to beat them is no victory, and the verdict says so with the share of its timesteps."""
    labels = labelled.labels.copy()
    labels[:300] = np.where(labels[:300] == 1, 2, labels[:300])  # another class in the training part
    labels[300:500] = 2
    scores = evaluate(classifier, replace(labelled, labels=labels, classes=("idle", "walk", "run")), split=SPLIT)
    part = scores.classification
    assert part.unlearned == ("walk",)
    sentence = verdict(
        replace(scores, classification=replace(part, model=replace(part.model, accuracy=1.0, cross_entropy=0.0)))
    )
    share = part.counts[part.classes.index("walk")] / part.count
    assert f"It can NOT know class walk, {100 * share:.1f} % of the scored timesteps" in sentence
    assert "beats" not in sentence
    assert not replace(part, model=replace(part.model, accuracy=1.0, cross_entropy=0.0)).wins


def test_a_class_that_the_held_out_part_lacks_is_named(classifier: Graph, labelled: Series) -> None:
    """A macro F1 of 1 over the other classes says nothing about it."""
    scores = evaluate(classifier, labelled, split=SPLIT)
    assert scores.classification.absent == ("run",)
    assert "No scored timestep is of class run: the scores, macro F1 too, say nothing about it." in verdict(scores)
