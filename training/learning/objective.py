"""What a network learns from: the truth of each timestep, looked up when it is needed, and the loss.

Forecasts: the mean pinball loss of the median and of each quantile, doubled, in units of persistence's own mean absolute
error on the training part, target by target and horizon by horizon. For the median alone that is the mean absolute error:
1 means "no better than repeating the last value", an easy horizon counts as much as a hard one, and a spiky target is
judged by its usual day and not by its peaks. (Pinball: Koenker and Bassett, Regression Quantiles, Econometrica 46, 1978.)

Classes: the cross-entropy in units of the entropy of the training part's classes: 1 means "no better than their
frequencies".
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from training.data.scaler import Scaler
from training.data.series import UNLABELLED, Floats, Series, Spans, ahead, rows_of
from training.data.split import Split
from training.errors import SettingsError
from training.judging.baselines import persistence
from training.network.heads import ForecastHead, Head, Outputs
from training.settings import Architecture, Classify, Forecast


class Objective(ABC):
    """The truth and the loss of one task on one series."""

    @abstractmethod
    def measure(self, head: Head) -> None:
        """Tell the head the units that it works in."""

    @abstractmethod
    def truth(self, rows: Tensor, counts: Tensor) -> Tensor:
        """What was true of each row (...), as `loss` takes it; unknown where `counts` (...) is false."""

    @abstractmethod
    def known(self, truth: Tensor) -> Tensor:
        """(n,) for truths (n, ...) how many of each are known: what a sum of losses is divided by."""

    @abstractmethod
    def loss(self, outputs: Outputs, truth: Tensor) -> Tensor:
        """The sum of the losses where the truth is known."""


class ForecastObjective(Objective):
    """Pinball loss in units of persistence's error. The training part does not see past its own end."""

    def __init__(self, series: Series, split: Split, scaler: Scaler, task: Forecast, values: Tensor) -> None:
        device = values.device
        self.values = values
        self.horizons = torch.tensor(task.horizons, device=device)
        self.targets = torch.tensor(task.targets, device=device)
        self.mean = torch.from_numpy(scaler.mean).to(device)[self.targets]
        self.std = torch.from_numpy(scaler.std).to(device)[self.targets]
        weight = _weight(series, task, split.train) * scaler.std[list(task.targets)]  # of errors in scaled units
        self.weight = torch.from_numpy(weight.astype(np.float32)).to(device)  # (horizons, targets)
        # The stretches in row order, so that a row finds its own; before them an empty one for the rows before the first.
        stretches = sorted(stretch for spans in (split.train, split.validation) for stretch in series.stretches(spans))
        self.first, self.end = torch.tensor([(-1, 0), *stretches], device=device).T.contiguous()
        self.quantiles = torch.tensor(task.quantiles, device=device)

    def measure(self, head: Head) -> None:
        """Persistence's error is the unit of a forecast's corrections."""
        assert isinstance(head, ForecastHead)
        head.naive.copy_(1.0 / self.weight)

    def truth(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(..., horizons, targets) in scaled units, NaN where unknown."""
        wanted = rows.unsqueeze(-1) + self.horizons  # (..., horizons)
        end = self.end[torch.bucketize(rows, self.first.to(rows.dtype), right=True) - 1]
        unknown = ~(counts.unsqueeze(-1) & (wanted < end.unsqueeze(-1)))
        places = wanted.clamp_(max=len(self.values) - 1).unsqueeze(-1) * self.values.shape[1] + self.targets
        # As one long row, which is looked up several times quicker than by two indices.
        values = self.values.view(-1).index_select(0, places.flatten()).view(places.shape)
        return values.sub_(self.mean).div_(self.std).masked_fill_(unknown.unsqueeze(-1), torch.nan)

    def known(self, truth: Tensor) -> Tensor:
        """Of truths (n, ..., horizons, targets)."""
        return torch.count_nonzero(~torch.isnan(truth).flatten(1), dim=1)

    def loss(self, outputs: Outputs, truth: Tensor) -> Tensor:
        """Of `forecast` (..., horizons, targets) and `quantiles` (..., horizons, targets, quantiles)."""
        known = ~torch.isnan(truth)
        forecast = outputs["forecast"]
        error = (forecast - truth.where(known, forecast.detach())).abs()  # twice the pinball loss of the median
        if "quantiles" in outputs:
            quantiles = outputs["quantiles"]
            missed = truth.where(known, 0.0).unsqueeze(-1) - quantiles
            pinball = torch.maximum(self.quantiles * missed, (self.quantiles - 1.0) * missed).sum(-1)
            error = (error + 2.0 * pinball.where(known, 0.0)) / (1 + len(self.quantiles))
        return (error * self.weight).sum()


class ClassifyObjective(Objective):
    """Cross-entropy in units of the classes' entropy."""

    def __init__(self, series: Series, split: Split, task: Classify, device: torch.device) -> None:
        if series.labels is None or series.classes != task.classes:
            raise SettingsError(f"label: {series.name} has no labels to learn; name their column with --label")
        self.labels = torch.from_numpy(series.labels).to(device)
        taught = np.concatenate([series.labels[first:end] for first, end in split.train])
        counts = np.bincount(taught[taught != UNLABELLED], minlength=len(task.classes))
        share = counts[counts > 0] / counts.sum()
        entropy = float(-(share * np.log(share)).sum())
        if entropy == 0:
            raise SettingsError(f"label: the training part of {series.name} has only one class; expected at least two")
        self.unit = 1.0 / entropy

    def measure(self, head: Head) -> None:
        """Classes have no unit."""

    def truth(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(...) the class, `UNLABELLED` where unknown."""
        return self.labels[rows].masked_fill(~counts, UNLABELLED)

    def known(self, truth: Tensor) -> Tensor:
        """Of truths (n, ...)."""
        return torch.count_nonzero((truth != UNLABELLED).flatten(1), dim=1)

    def loss(self, outputs: Outputs, truth: Tensor) -> Tensor:
        """Of `logits` (..., classes)."""
        logits = outputs["logits"].flatten(0, -2)
        total = torch.nn.functional.cross_entropy(logits, truth.flatten(), ignore_index=UNLABELLED, reduction="sum")
        return total * self.unit


def build_objective(
    series: Series, split: Split, scaler: Scaler, architecture: Architecture, values: Tensor
) -> Objective:
    """The objective of the architecture's task; `values` are those of the series, on the device that learns."""
    task = architecture.task
    if task.kind == "forecast":
        return ForecastObjective(series, split, scaler, task, values)
    return ClassifyObjective(series, split, task, values.device)


def _weight(series: Series, task: Forecast, spans: Spans) -> Floats:
    """One over persistence's mean absolute error on the training part: (horizons, targets).

    One where that error is nil or unknown, so that nothing is divided by zero. Horizon by horizon, to stay small in memory.
    """
    weight = np.ones((len(task.horizons), len(task.targets)), np.float32)
    for index, horizon in enumerate(task.horizons):
        error = np.abs(
            ahead(series, task.targets, (horizon,), spans) - persistence(series, task.targets, (horizon,), spans)
        ).reshape(rows_of(spans), -1)
        known = ~np.isnan(error)
        mean = np.where(known, error, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
        weight[index] = np.where(mean > 0, 1.0 / np.where(mean > 0, mean, 1.0), 1.0)
    return weight
