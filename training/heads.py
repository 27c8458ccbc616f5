"""Heads: what a network says of its last layer. Each works in scaled units and turns its outputs into raw ones.

A head may carry state of its own; the batch is the last axis but one of every state tensor.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from training.cells import State
from training.settings import Architecture, Classify, Forecast

Outputs = dict[str, Tensor]


class Head(nn.Module, ABC):
    """What a network asks of a head.

    `states` names its state tensors, each [batch, n] and zero in a fresh stream; `outputs` what is served, in order.
    """

    states: tuple[str, ...] = ()
    outputs: tuple[str, ...]

    @abstractmethod
    def sequence(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:
        """(time, batch, hidden) and (time, batch, features) scaled -> outputs in scaled units, and the next state."""

    @abstractmethod
    def step(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:
        """(batch, hidden) and (batch, features) scaled -> outputs in scaled units, and the next state."""

    @abstractmethod
    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs as they are served; `mean` and `std` (features,) are those of the scaler."""

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  most outputs have no unit
        """What a difference in an output is measured in; broadcasts over it."""
        return std.new_ones(())

    def fresh_state(self, batch: int) -> State:  # noqa: ARG002  a head without state makes none for any batch
        """The state of streams that have not seen a timestep."""
        return ()


class ForecastHead(Head):
    """A median and quantiles for each horizon and target.

    The median is a line through the last layer plus a learned share of each link. The share of the first link, usually the
    last seen value, starts at 1: an untrained network is persistence, which is hard to beat one step ahead and useless a
    day ahead. The link to the features is a linear regression beside the cells (the autoregressive part of Lai et al., Modeling
    Long- and Short-Term Temporal Patterns with Deep Neural Networks, SIGIR 2018). Each other quantile lies a number of steps from the median, and no step is negative: they cannot cross.
    """

    targets: Tensor  # (targets,)
    steps: Tensor  # (steps, quantiles), 1 or -1 where a step lies between the median and the quantile

    def __init__(self, hidden: int, features: int, task: Forecast) -> None:
        super().__init__()
        self.task = task
        self.shape = (len(task.horizons), len(task.targets))
        steps = _steps(task.quantiles)
        self.line = nn.Linear(hidden, math.prod(self.shape))
        if len(steps):
            self.spread = nn.Linear(hidden, math.prod(self.shape) * len(steps))
        # One link starts at 1 and another at 0: two halves would be a worse forecast than either.
        shared = [link for link in task.links if link != "features"]
        shares = {link: torch.full(self.shape, float(index == 0)) for index, link in enumerate(shared)}
        self.share = nn.ParameterDict(shares)
        if "features" in task.links:
            self.skip = nn.Linear(features, math.prod(self.shape), bias=False)
            nn.init.zeros_(self.skip.weight)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.states = ("season",) if "season" in task.links else ()
        self.outputs = ("forecast", "quantiles") if task.quantiles else ("forecast",)

    def fresh_state(self, batch: int) -> State:
        """`season` [batch, (season - 1) * targets]: the targets' last values, the oldest first."""
        width = (self.task.season - 1) * self.shape[1]
        return (torch.zeros(batch, width, device=self.steps.device),) if self.states else ()

    def sequence(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:
        """`forecast` (time, batch, horizons, targets) and `quantiles` (time, batch, horizons, targets, quantiles)."""
        own = seen.index_select(-1, self.targets)  # (time, batch, targets)
        if not self.states:
            return self._outputs(y, seen, None), state
        past = state[0].reshape(own.shape[1], -1, own.shape[2]).transpose(0, 1)  # (season - 1, batch, targets)
        known = torch.cat([past, own])
        before = torch.stack([known[first : first + len(own)] for first in self._first()], dim=-2)
        return self._outputs(y, seen, before), (known[len(own) :].transpose(0, 1).flatten(1),)

    def step(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:
        """`forecast` (batch, horizons, targets) and `quantiles` (batch, horizons, targets, quantiles)."""
        own = seen.index_select(-1, self.targets)  # (batch, targets)
        if not self.states:
            return self._outputs(y, seen, None), state
        known = torch.cat([state[0], own], dim=-1)  # (batch, season * targets)
        before = known.reshape(len(own), -1, own.shape[1]).index_select(1, torch.tensor(self._first()))
        return self._outputs(y, seen, before), (known[:, own.shape[1] :],)

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """In the targets' units."""
        mean, std = mean[self.targets], std[self.targets]
        served = {"forecast": outputs["forecast"] * std + mean}
        if "quantiles" in outputs:
            served["quantiles"] = outputs["quantiles"] * std.unsqueeze(-1) + mean.unsqueeze(-1)
        return served

    def unit(self, output: str, std: Tensor) -> Tensor:
        """The targets' standard deviations."""
        return std[self.targets].unsqueeze(-1) if output == "quantiles" else std[self.targets]

    def _first(self) -> list[int]:
        """Where, in a season of values that ends with the present one, the value whole seasons before each horizon is."""
        season = self.task.season
        # The present value is the last, season - 1; h - season * ceil(h / season) timesteps lie between.
        return [season - 1 + horizon - season * -(-horizon // season) for horizon in self.task.horizons]

    def _outputs(self, y: Tensor, seen: Tensor, before: Tensor | None) -> Outputs:
        """(..., hidden), (..., features) and (..., horizons, targets) -> what is forecast, in scaled units."""
        flat = self.line(y) + self.skip(seen) if "features" in self.task.links else self.line(y)
        median = flat.unflatten(-1, self.shape)
        if "last" in self.share:
            median = median + self.share["last"] * seen.index_select(-1, self.targets).unsqueeze(-2)
        if before is not None:
            median = median + self.share["season"] * before
        outputs: Outputs = {"forecast": median}
        if len(self.steps):
            # ELU + 1, which is positive and smooth. Not by onnxruntime's Elu: it rounds by where a row stands in a batch.
            size = self.spread(y)
            size = (torch.relu(size) + torch.exp(-torch.relu(-size))).reshape(*y.shape[:-1], *self.shape, -1)
            outputs["quantiles"] = median.unsqueeze(-1) + size @ self.steps
        elif self.task.quantiles:
            outputs["quantiles"] = median.unsqueeze(-1)
        return outputs


def _steps(quantiles: tuple[float, ...]) -> Tensor:
    """(steps, quantiles): one step for each quantile but the median; a quantile is the sum of those up to it."""
    others = [quantile for quantile in quantiles if quantile != 0.5]
    rows = [
        [-1.0 if quantile <= step < 0.5 else 1.0 if 0.5 < step <= quantile else 0.0 for quantile in quantiles]
        for step in others
    ]
    return torch.tensor(rows).reshape(len(others), len(quantiles))


class ClassifyHead(Head):
    """A probability for each class."""

    outputs = ("probability",)

    def __init__(self, hidden: int, task: Classify) -> None:
        super().__init__()
        self.line = nn.Linear(hidden, len(task.classes))

    def sequence(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:  # noqa: ARG002  no last value
        """`logits` (time, batch, classes)."""
        return {"logits": self.line(y)}, state

    def step(self, y: Tensor, seen: Tensor, state: State) -> tuple[Outputs, State]:  # noqa: ARG002  no last value
        """`logits` (batch, classes)."""
        return {"logits": self.line(y)}, state

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a probability has no unit
        """`probability` (..., classes), which sum to 1."""
        return {"probability": torch.softmax(outputs["logits"], dim=-1)}


def build_head(architecture: Architecture) -> Head:
    """The head that the task wants."""
    task = architecture.task
    return (
        ForecastHead(architecture.hidden, architecture.features, task)
        if task.kind == "forecast"
        else ClassifyHead(architecture.hidden, task)
    )
