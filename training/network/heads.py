"""Heads: what a network says of its last layer. Each works in scaled units and turns its outputs into raw ones.

A head may carry state of its own; the batch is the last axis but one of every state tensor.
"""

import math
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from training.network.cells import State
from training.settings import Architecture, Classify, Forecast

Outputs = dict[str, Tensor]


class Head(nn.Module, ABC):
    """What a network asks of a head.

    `states` names its state tensors, each [batch, n] and zero in a fresh stream; `outputs` what is served, in order.
    """

    states: tuple[str, ...] = ()
    outputs: tuple[str, ...]

    @abstractmethod
    def sequence(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:
        """(time, batch, hidden), (time, batch, features) scaled and (time, batch, inputs) -> outputs, and the next state.

        `told` is what the first layer is told. The outputs are in scaled units.
        """

    @abstractmethod
    def step(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:
        """(batch, hidden), (batch, features) scaled and (batch, inputs) -> outputs in scaled units, and the next state."""

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

    The median is the first link, usually the last seen value, plus a correction: a line through the last layer and a
    learned share of each link. The correction starts small, so an untrained network is close to persistence, which is hard
    to beat one step ahead and useless a day ahead. The link to the features is a linear regression on what the cells are
    told (the autoregressive part of Lai et al., Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks,
    SIGIR 2018). Each other quantile lies a number of steps from the median, and no step is negative: they cannot cross.

    Corrections and steps are in units of persistence's own error, target by target and horizon by horizon: for a slow
    sensor that is a hundredth of its standard deviation, and an optimiser's step would be too coarse for it.
    """

    targets: Tensor  # (targets,)
    naive: Tensor  # (horizons, targets) persistence's mean absolute error on the training part, in scaled units
    steps: Tensor  # (steps, quantiles), 1 or -1 where a step lies between the median and the quantile

    def __init__(self, hidden: int, inputs: int, task: Forecast) -> None:
        super().__init__()
        self.task = task
        self.shape = (len(task.horizons), len(task.targets))
        steps = _steps(task.quantiles)
        self.line = nn.Linear(hidden, math.prod(self.shape))
        if len(steps):
            self.spread = nn.Linear(hidden, math.prod(self.shape) * len(steps))
        shared = [link for link in task.links if link != "features"]
        self.share = nn.ParameterDict({link: torch.zeros(self.shape) for link in shared})
        # Not the first of the dictionary, which torch has sorted.
        self.base = shared[0] if shared else None
        if "features" in task.links:
            self.skip = nn.Linear(inputs, math.prod(self.shape), bias=False)
            nn.init.zeros_(self.skip.weight)
        self.register_buffer("naive", torch.ones(self.shape))
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.states = ("season",) if "season" in task.links else ()
        self.outputs = ("forecast", "quantiles") if task.quantiles else ("forecast",)

    def fresh_state(self, batch: int) -> State:
        """`season` [batch, (season - 1) * targets]: the targets' last values, the oldest first."""
        width = (self.task.season - 1) * self.shape[1]
        return (torch.zeros(batch, width, device=self.steps.device),) if self.states else ()

    def sequence(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:
        """`forecast` (time, batch, horizons, targets) and `quantiles` (time, batch, horizons, targets, quantiles)."""
        own = seen.index_select(-1, self.targets)  # (time, batch, targets)
        if not self.states:
            return self._outputs(y, own, told, None), state
        past = state[0].reshape(own.shape[1], -1, own.shape[2]).transpose(0, 1)  # (season - 1, batch, targets)
        known = torch.cat([past, own])
        before = torch.stack([known[first : first + len(own)] for first in self._first()], dim=-2)
        return self._outputs(y, own, told, before), (known[len(own) :].transpose(0, 1).flatten(1),)

    def step(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:
        """`forecast` (batch, horizons, targets) and `quantiles` (batch, horizons, targets, quantiles)."""
        own = seen.index_select(-1, self.targets)  # (batch, targets)
        if not self.states:
            return self._outputs(y, own, told, None), state
        known = torch.cat([state[0], own], dim=-1)  # (batch, season * targets)
        before = torch.unflatten(known, -1, (self.task.season, own.shape[1])).index_select(
            1, torch.tensor(self._first())
        )
        return self._outputs(y, own, told, before), (known[:, own.shape[1] :],)

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

    def _outputs(self, y: Tensor, own: Tensor, told: Tensor, before: Tensor | None) -> Outputs:
        """(..., hidden), (..., targets), (..., inputs) and (..., horizons, targets) -> what is forecast, in scaled units."""
        flat = self.line(y) + self.skip(told) if "features" in self.task.links else self.line(y)
        correction = flat.unflatten(-1, self.shape)
        links = {"last": own.unsqueeze(-2), "season": before}
        for link, share in self.share.items():
            correction = correction + share * cast(Tensor, links[link])
        median = correction * self.naive
        if self.base:
            median = median + cast(Tensor, links[self.base])
        outputs: Outputs = {"forecast": median}
        if len(self.steps):
            # ELU + 1, which is positive and smooth. Not by onnxruntime's Elu: it rounds by where a row stands in a batch.
            size = self.spread(y)
            size = (torch.relu(size) + torch.exp(-torch.relu(-size))).reshape(*y.shape[:-1], *self.shape, -1)
            outputs["quantiles"] = median.unsqueeze(-1) + (size * self.naive.unsqueeze(-1)) @ self.steps
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

    def sequence(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:  # noqa: ARG002  no last value
        """`logits` (time, batch, classes)."""
        return {"logits": self.line(y)}, state

    def step(self, y: Tensor, seen: Tensor, told: Tensor, state: State) -> tuple[Outputs, State]:  # noqa: ARG002  no last value
        """`logits` (batch, classes)."""
        return {"logits": self.line(y)}, state

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a probability has no unit
        """`probability` (..., classes), which sum to 1."""
        return {"probability": torch.softmax(outputs["logits"], dim=-1)}


def build_head(architecture: Architecture, inputs: int) -> Head:
    """The head that the task wants; `inputs` is the width of what the first layer is told."""
    task = architecture.task
    return (
        ForecastHead(architecture.hidden, inputs, task)
        if task.kind == "forecast"
        else ClassifyHead(architecture.hidden, task)
    )
