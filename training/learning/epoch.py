"""An epoch of a training, in numbers and in words. This module needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch. `loss` and `score` are in the unit of the objective, where 1 equals the naive forecast."""

    number: int
    loss: float
    score: float
    learning_rate: float
    elapsed_s: float
    progress: float  # 0..1


def progress_line(epoch: Epoch, best: Epoch) -> str:
    """An epoch in words."""
    left_s = epoch.elapsed_s * (1.0 / epoch.progress - 1.0)
    return (
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, score {epoch.score:.4f}, best {best.score:.4f}, "
        f"{epoch.elapsed_s:.0f} s, at most {left_s:.0f} s left"
    )
