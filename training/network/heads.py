"""Heads turn the last layer into outputs. A head works in scaled units and converts its outputs to raw ones.

A head may have state. The batch is the last axis but one of every state tensor.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.network.linear import LinearLink
from tidegate.training.settings import Architecture, Classify, Forecast

Outputs = dict[str, Tensor]


class Head(nn.Module, ABC):
    """The interface of a head.

    `states` names its state tensors, each [batch, n] and zero in a new stream. `outputs` names the served outputs, in order.
    """

    states: tuple[str, ...] = ()
    outputs: tuple[str, ...]

    @abstractmethod
    def links(self, values: Tensor, missing: Tensor, state: State) -> tuple[Outputs, State]:
        """(time, batch, features) scaled -> what the outputs are built on beside the layers, and the next state.

        `missing` tells which of the values are filled in. Nothing of it depends on a weight that is trained.
        """

    @abstractmethod
    def combine(self, y: Tensor, links: Outputs, inputs: Tensor) -> Outputs:
        """(..., hidden) of the last layer, the links, and (..., inputs) of the first layer -> outputs in scaled units."""

    @abstractmethod
    def step(self, y: Tensor, values: Tensor, missing: Tensor, inputs: Tensor, state: State) -> tuple[Outputs, State]:
        """(batch, hidden), (batch, features) scaled and (batch, inputs) -> outputs in scaled units, and the next state."""

    @abstractmethod
    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs as they are served; `mean` and `std` (features,) are those of the scaler."""

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  most outputs have no unit
        """The unit of a difference in an output; broadcasts over it."""
        return std.new_ones(())

    def initial_state(self, batch: int) -> State:  # noqa: ARG002  a head without state makes none for any batch
        """The state of streams that have not seen a timestep."""
        return ()


class ForecastHead(Head):
    """A median and quantiles for each horizon and target.

    The median is the first link plus a correction. The first link is usually the last observed value. The correction is a
    linear layer on the last cell, plus a trained share of each link. It starts small, so an untrained network is close to
    persistence, which is hard to beat one step ahead and useless a day ahead. The link to the features is a linear
    regression on the inputs of the cells (the autoregressive part of Lai et al., Modeling Long- and Short-Term Temporal
    Patterns with Deep Neural Networks, SIGIR 2018). Each other quantile is the median plus or minus a sum of steps. No step
    is negative, so quantiles cannot cross.

    The first link may also be a frozen linear regression. Then the correction starts from exactly zero, and `kept` says how
    much of it is left after the training: 0 where the regression alone is better.

    Corrections and steps are in units of the error of persistence, for each target and horizon. For a slow sensor that is
    a hundredth of its standard deviation, and the steps of an optimizer would be too coarse for it.
    """

    targets: Tensor  # (targets,)
    naive: Tensor  # (horizons, targets), mean absolute error of persistence on the training part, in scaled units
    steps: Tensor  # (steps, quantiles), 1 or -1 where a step lies between the median and the quantile
    kept: Tensor  # (horizons, targets), the share of the correction that is left; only with the link `linear`

    def __init__(self, hidden: int, inputs: int, features: int, task: Forecast) -> None:
        super().__init__()
        self.task = task
        self.shape = (len(task.horizons), len(task.targets))
        steps = quantile_steps(task.quantiles)
        self.line = nn.Linear(hidden, math.prod(self.shape))
        if len(steps):
            self.spread = nn.Linear(hidden, math.prod(self.shape) * len(steps))
        shared = [link for link in task.links if link not in ("features", "linear")]
        self.share = nn.ParameterDict({link: torch.zeros(self.shape) for link in shared})
        # Not the first of the dictionary, because torch sorts it.
        self.base = "linear" if "linear" in task.links else shared[0] if shared else None
        self.linear = LinearLink(features, task) if "linear" in task.links else None
        if self.linear:
            nn.init.zeros_(self.line.weight)
            nn.init.zeros_(self.line.bias)
            self.register_buffer("kept", torch.ones(self.shape))
        if "features" in task.links:
            self.skip = nn.Linear(inputs, math.prod(self.shape), bias=False)
            nn.init.zeros_(self.skip.weight)
        self.register_buffer("naive", torch.ones(self.shape))
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.seasonal = "season" in task.links
        self.states = (*(self.linear.states if self.linear else ()), *(("season",) if self.seasonal else ()))
        # Quantiles that follow the errors are served by a monitor.
        self.outputs = ("forecast", "quantiles") if task.quantiles and not task.follow else ("forecast",)

    def initial_state(self, batch: int) -> State:
        """`window` of the linear link; `season` [batch, (season - 1) * targets]: the last values of the targets, the oldest first."""
        width = (self.task.season - 1) * self.shape[1]
        window = self.linear.initial_state(batch) if self.linear else ()
        return (*window, *((torch.zeros(batch, width, device=self.steps.device),) if self.seasonal else ()))

    def links(self, values: Tensor, missing: Tensor, state: State) -> tuple[Outputs, State]:
        """Each (time, batch, horizons or 1, targets), by the name of the link."""
        target_values = values.index_select(-1, self.targets)  # (time, batch, targets)
        links, window = {"last": target_values.unsqueeze(-2)}, state[: len(state) - self.seasonal]
        if self.linear:
            links["linear"], window = self.linear.sequence(values, missing, window)
        if not self.seasonal:
            return links, window
        past = (
            state[-1].reshape(target_values.shape[1], -1, target_values.shape[2]).transpose(0, 1)
        )  # (season - 1, batch, targets)
        history = torch.cat([past, target_values])
        links["season"] = torch.stack(
            [history[first : first + len(target_values)] for first in self._season_offsets()], dim=-2
        )
        season = history[len(target_values) :].transpose(0, 1).flatten(1)
        return links, (*window, season)

    def step(self, y: Tensor, values: Tensor, missing: Tensor, inputs: Tensor, state: State) -> tuple[Outputs, State]:
        """`forecast` (batch, horizons, targets) and `quantiles` (batch, horizons, targets, quantiles)."""
        target_values = values.index_select(-1, self.targets)  # (batch, targets)
        links, window = {"last": target_values.unsqueeze(-2)}, state[: len(state) - self.seasonal]
        if self.linear:
            links["linear"], window = self.linear.step(values, missing, window)
        if not self.seasonal:
            return self.combine(y, links, inputs), window
        history = torch.cat([state[-1], target_values], dim=-1)  # (batch, season * targets)
        links["season"] = torch.unflatten(history, -1, (self.task.season, target_values.shape[1])).index_select(
            1, torch.tensor(self._season_offsets())
        )
        return self.combine(y, links, inputs), (*window, history[:, target_values.shape[1] :])

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs in the units of the targets."""
        mean, std = mean[self.targets], std[self.targets]
        served = {"forecast": outputs["forecast"] * std + mean}
        if "quantiles" in self.outputs:
            served["quantiles"] = outputs["quantiles"] * std.unsqueeze(-1) + mean.unsqueeze(-1)
        return served

    def unit(self, output: str, std: Tensor) -> Tensor:
        """The standard deviations of the targets."""
        return std[self.targets].unsqueeze(-1) if output == "quantiles" else std[self.targets]

    def _season_offsets(self) -> list[int]:
        """For each horizon, the index of the value whole seasons before it, within the last season of values."""
        season = self.task.season
        # The present value is the last, season - 1; h - season * ceil(h / season) timesteps lie between.
        return [season - 1 + horizon - season * -(-horizon // season) for horizon in self.task.horizons]

    def combine(self, y: Tensor, links: Outputs, inputs: Tensor) -> Outputs:
        """`forecast` (..., horizons, targets) and `quantiles` (..., horizons, targets, quantiles)."""
        flat = self.line(y) + self.skip(inputs) if "features" in self.task.links else self.line(y)
        correction = flat.unflatten(-1, self.shape)
        for link, share in self.share.items():
            correction = correction + share * links[link]
        median = correction * (self.naive * self.kept if self.linear else self.naive)
        if self.base:
            median = median + links[self.base]
        outputs: Outputs = {"forecast": median}
        if len(self.steps):
            # ELU + 1, which is positive and smooth. onnxruntime's Elu would round by the position of a row in its batch.
            size = self.spread(y)
            size = (torch.relu(size) + torch.exp(-torch.relu(-size))).reshape(*y.shape[:-1], *self.shape, -1)
            outputs["quantiles"] = median.unsqueeze(-1) + (size * self.naive.unsqueeze(-1)) @ self.steps
        elif self.task.quantiles:
            outputs["quantiles"] = median.unsqueeze(-1)
        return outputs


def quantile_steps(quantiles: tuple[float, ...]) -> Tensor:
    """(steps, quantiles): one step for each quantile but the median. A quantile is the sum of the steps up to it."""
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

    def links(self, values: Tensor, missing: Tensor, state: State) -> tuple[Outputs, State]:  # noqa: ARG002  no last value
        """No links: classes need none."""
        return {}, state

    def combine(self, y: Tensor, links: Outputs, inputs: Tensor) -> Outputs:  # noqa: ARG002
        """`logits` (..., classes)."""
        return {"logits": self.line(y)}

    def step(
        self,
        y: Tensor,
        values: Tensor,  # noqa: ARG002  no last value
        missing: Tensor,  # noqa: ARG002
        inputs: Tensor,
        state: State,
    ) -> tuple[Outputs, State]:
        """`logits` (batch, classes)."""
        return self.combine(y, {}, inputs), state

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a probability has no unit
        """`probability` (..., classes), which sum to 1."""
        return {"probability": torch.softmax(outputs["logits"], dim=-1)}


def build_head(architecture: Architecture, inputs: int) -> Head:
    """The head of the task; `inputs` is the width of the inputs of the first layer."""
    task = architecture.task
    return (
        ForecastHead(architecture.hidden, inputs, architecture.features, task)
        if task.kind == "forecast"
        else ClassifyHead(architecture.hidden, task)
    )
