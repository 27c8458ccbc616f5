"""The objective: the training targets of each timestep, gathered on demand, and the loss.

Forecasts: the doubled mean pinball loss of the median and of each quantile. It is in units of the mean absolute error of
persistence on the training part, for each target and horizon. For the median alone it is the mean absolute error. A value
of 1 means "no better than repeating the last value". An easy horizon counts as much as a hard one, and a spiky target is
scored by its usual day, not by its peaks. (Pinball: Koenker and Bassett, Regression Quantiles, Econometrica 46, 1978.)

Classes: the cross-entropy in units of the entropy of the classes of the training part. A value of 1 means "no better than
the class frequencies".
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import UNLABELLED, Floats, Series, Spans, count_rows, future_values
from tidegate.training.data.split import Split
from tidegate.training.errors import SettingsError
from tidegate.training.judging.baselines import persistence
from tidegate.training.network.heads import ForecastHead, Head, Outputs
from tidegate.training.settings import Architecture, Classify, Forecast


class Objective(ABC):
    """The targets and the loss of one task on one series."""

    @abstractmethod
    def set_units(self, head: Head) -> None:
        """Set the units that the head works in."""

    @abstractmethod
    def targets_of(self, rows: Tensor, mask: Tensor) -> Tensor:
        """The targets of the rows (...), as `loss` takes them; unknown where `mask` (...) is false."""

    @abstractmethod
    def count_known(self, targets: Tensor) -> Tensor:
        """(n,) how many targets (n, ...) are known: the divisor of a sum of losses."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The sum of the losses where the target is known."""


class ForecastObjective(Objective):
    """Pinball loss in units of the error of persistence. The training part does not see past its own end."""

    def __init__(self, series: Series, split: Split, scaler: Scaler, task: Forecast, values: Tensor) -> None:
        device = values.device
        self.values = values
        self.horizons = torch.tensor(task.horizons, device=device)
        self.columns = torch.tensor(task.targets, device=device)
        self.mean = torch.from_numpy(scaler.mean).to(device)[self.columns]
        self.std = torch.from_numpy(scaler.std).to(device)[self.columns]
        weight = _weight(series, task, split.train) * scaler.std[list(task.targets)]  # of errors in scaled units
        self.weight = torch.from_numpy(weight.astype(np.float32)).to(device)  # (horizons, targets)
        # The segments in row order, so that a row finds its own. The first is empty, for the rows before all others.
        segments = sorted(segment for spans in (split.train, split.validation) for segment in series.segments(spans))
        self.first, self.end = torch.tensor([(-1, 0), *segments], device=device).T.contiguous()
        self.quantiles = torch.tensor(task.quantiles, device=device)

    def set_units(self, head: Head) -> None:
        """The error of persistence is the unit of the corrections of a forecast."""
        assert isinstance(head, ForecastHead)
        head.naive.copy_(1.0 / self.weight)

    def targets_of(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(..., horizons, targets) in scaled units, NaN where unknown."""
        future = rows.unsqueeze(-1) + self.horizons  # (..., horizons)
        end = self.end[torch.bucketize(rows, self.first.to(rows.dtype), right=True) - 1]
        unknown = ~(mask.unsqueeze(-1) & (future < end.unsqueeze(-1)))
        indices = future.clamp_(max=len(self.values) - 1).unsqueeze(-1) * self.values.shape[1] + self.columns
        # As one long row: one index is several times faster than two.
        values = self.values.view(-1).index_select(0, indices.flatten()).view(indices.shape)
        return values.sub_(self.mean).div_(self.std).masked_fill_(unknown.unsqueeze(-1), torch.nan)

    def count_known(self, targets: Tensor) -> Tensor:
        """(n, ..., horizons, targets) -> (n,)."""
        return torch.count_nonzero(~torch.isnan(targets).flatten(1), dim=1)

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Of `forecast` (..., horizons, targets) and `quantiles` (..., horizons, targets, quantiles)."""
        known = ~torch.isnan(targets)
        forecast = outputs["forecast"]
        error = (forecast - targets.where(known, forecast.detach())).abs()  # twice the pinball loss of the median
        if "quantiles" in outputs:
            quantiles = outputs["quantiles"]
            missed = targets.where(known, 0.0).unsqueeze(-1) - quantiles
            pinball = torch.maximum(self.quantiles * missed, (self.quantiles - 1.0) * missed).sum(-1)
            error = (error + 2.0 * pinball.where(known, 0.0)) / (1 + len(self.quantiles))
        return (error * self.weight).sum()


class ClassifyObjective(Objective):
    """Cross-entropy in units of the classes' entropy."""

    def __init__(self, series: Series, split: Split, task: Classify, device: torch.device) -> None:
        if series.labels is None or series.classes != task.classes:
            raise SettingsError(f"label: {series.name} has no labels to train on; name their column with --label")
        self.labels = torch.from_numpy(series.labels).to(device)
        labels = np.concatenate([series.labels[first:end] for first, end in split.train])
        counts = np.bincount(labels[labels != UNLABELLED], minlength=len(task.classes))
        share = counts[counts > 0] / counts.sum()
        entropy = float(-(share * np.log(share)).sum())
        if entropy == 0:
            raise SettingsError(f"label: the training part of {series.name} has only one class; expected at least two")
        self.unit = 1.0 / entropy

    def set_units(self, head: Head) -> None:
        """Nothing: classes have no unit."""

    def targets_of(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(...) the class, `UNLABELLED` where unknown."""
        return self.labels[rows].masked_fill(~mask, UNLABELLED)

    def count_known(self, targets: Tensor) -> Tensor:
        """(n, ...) -> (n,)."""
        return torch.count_nonzero((targets != UNLABELLED).flatten(1), dim=1)

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Of `logits` (..., classes)."""
        logits = outputs["logits"].flatten(0, -2)
        total = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=UNLABELLED, reduction="sum")
        return total * self.unit


def build_objective(
    series: Series, split: Split, scaler: Scaler, architecture: Architecture, values: Tensor
) -> Objective:
    """The objective of the task; `values` are those of the series, on the device of the training."""
    task = architecture.task
    if task.kind == "forecast":
        return ForecastObjective(series, split, scaler, task, values)
    return ClassifyObjective(series, split, task, values.device)


def _weight(series: Series, task: Forecast, spans: Spans) -> Floats:
    """(horizons, targets) the inverse of the mean absolute error of persistence on the training part.

    1 where that error is zero or unknown. Horizon by horizon, to save memory.
    """
    weight = np.ones((len(task.horizons), len(task.targets)), np.float32)
    for index, horizon in enumerate(task.horizons):
        error = np.abs(
            future_values(series, task.targets, (horizon,), spans)
            - persistence(series, task.targets, (horizon,), spans)
        ).reshape(count_rows(spans), -1)
        known = ~np.isnan(error)
        mean = np.where(known, error, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
        weight[index] = np.where(mean > 0, 1.0 / np.where(mean > 0, mean, 1.0), 1.0)
    return weight
