"""The famous long lag of Hochreiter & Schmidhuber (1997): remember a symbol for many timesteps of distractors, then name it.

Each sequence is a stream of its own. At its first timestep, where `store` is 1, the columns `a` and `b` hold the symbol,
one of four; at every other they hold symbols too, by chance, which mean nothing. At its last timestep, where `recall` is 1, the
symbol is asked for: only there is a label.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tidegate.training.data.scaler import Scaler, fit_scaler
from tidegate.training.data.series import UNLABELLED, Floats, Group, Ints, Series
from tidegate.training.data.split import Split
from tidegate.training.learning.fit import FitResult, fit
from tidegate.training.network.network import Network
from tidegate.training.settings import Architecture, Classify, Fit, Shape

CLASSES = ("--", "+-", "-+", "++")
SECOND_NS = np.timedelta64(1_000_000_000, "ns")


def make_recall(count: int, lag: int, seed: int) -> tuple[Floats, Ints]:
    """So many sequences: values (time, count, 4), where time is lag + 1, and the symbols (count,)."""
    rng = np.random.default_rng(seed)
    values = np.zeros((lag + 1, count, 4), np.float32)
    values[..., :2] = rng.choice([-1.0, 1.0], (lag + 1, count, 2))
    values[0, :, 2] = values[-1, :, 3] = 1.0
    return values, (values[0, :, :2] > 0) @ np.array([1, 2])


@dataclass(frozen=True)
class Task:
    """A series of such sequences, each a group, and what is learned from it."""

    series: Series
    split: Split
    scaler: Scaler

    @classmethod
    def of(cls, lag: int, *, teach: int, choose: int = 64) -> "Task":
        """So many sequences that teach and that choose."""
        values, symbols = make_recall(teach + choose + 2, lag, seed=0)
        size, count = values.shape[:2]
        labels = np.full((count, size), UNLABELLED, np.int64)
        labels[:, -1] = symbols
        series = Series(
            name="recall",
            sha256="0" * 64,
            names=("a", "b", "store", "recall"),
            units=("",) * 4,
            values=np.ascontiguousarray(values.swapaxes(0, 1)).reshape(-1, 4),
            times=np.datetime64("2024-01-01", "ns") + np.tile(np.arange(size), count) * SECOND_NS,
            period_s=1.0,
            groups=tuple(Group(str(index), index * size, (index + 1) * size) for index in range(count)),
            labels=labels.ravel(),
            classes=CLASSES,
        )
        split = Split(series.spans[:teach], series.spans[teach : teach + choose], series.spans[-2:])
        return cls(series, split, fit_scaler(series, split.train))

    def learn(self, shape: Shape, settings: Fit) -> FitResult:
        """Train a network."""
        architecture = Architecture(features=4, task=Classify(classes=CLASSES), **shape.model_dump())
        return fit(self.series, self.split, self.scaler, architecture, settings)


def accuracy(network: Network, lag: int, count: int = 500) -> float:
    """The share of new sequences whose symbol is named rightly at the recall, from the initial state each."""
    values, symbols = make_recall(count, lag, seed=1)
    with torch.no_grad():
        outputs, _ = network.sequence(torch.from_numpy(values), network.initial_state(count))
    return float((outputs["probability"][-1].argmax(-1).numpy() == symbols).mean())
