"""When it is said that the losses of training and validation part."""

from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.parting import parting


def epochs(losses: list[float], scores: list[float]) -> tuple[list[Epoch], Epoch]:
    """A training with these losses and scores, and its best epoch."""
    made = [
        Epoch(number, loss, score, 1e-3, 1.0 * number, 0.5)
        for number, (loss, score) in enumerate(zip(losses, scores, strict=True), start=1)
    ]
    return made, min(made, key=lambda epoch: epoch.score)


def test_losses_that_part_are_told() -> None:
    """With the epoch, both pairs of numbers, and what to try."""
    printed = parting(*epochs([0.8, 0.6, 0.5, 0.45, 0.4], [0.8, 0.7, 0.75, 0.8, 0.85]))
    assert (
        "part after epoch 2: the loss fell from 0.600 to 0.450 while the validation score rose from 0.700 to 0.800"
        in printed
    )
    assert "--hidden" in printed


def test_losses_that_go_together_are_not() -> None:
    """Nor a score that wavers, one that stands still, or a training that has just begun to part."""
    assert not parting(*epochs([0.8, 0.7, 0.6, 0.5, 0.4], [0.8, 0.7, 0.6, 0.5, 0.4]))
    assert not parting(*epochs([0.8, 0.6, 0.5, 0.45, 0.4], [0.8, 0.7, 0.71, 0.72, 0.72]))
    assert not parting(*epochs([0.8, 0.6, 0.6, 0.6, 0.6], [0.8, 0.7, 0.75, 0.8, 0.85]))
    assert not parting(*epochs([0.8, 0.6, 0.4], [0.8, 0.7, 0.9]))
