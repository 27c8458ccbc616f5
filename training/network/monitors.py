"""Monitors: they watch the forecasts of a network while it runs. Nothing here is trained by gradient.

`Intervals` puts an interval around each forecast and keeps its long-run coverage, whatever the series does.
`alarm` has another monitor, which scores how unexpected a timestep is.

Laws:
1. A monitor knows one timestep, `step`; a sequence is a loop over it. A network in training has no monitors.
2. State is zero in a new stream: it holds counts, and offsets from buffers that `calibrate` fits before the export.
3. A missing value changes no estimate. Neither does a forecast that a new stream has not made yet.
4. All values are in scaled units until `raw`: the distance from the training mean in training standard deviations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.network.heads import Outputs
from tidegate.training.settings import Forecast

# How far the half-width of an interval moves after a miss, in mean absolute deviations of the scores. It is divided by the
# root of the horizon: feedback comes so much later, and errors of neighbouring timesteps are alike. The error of the
# long-run coverage is the range of the half-width, divided by this and by the number of timesteps: 3,000 of them hold it
# to a per cent.
INTERVAL_RATE = 0.15
# A half-width of zero marks a forecast that a new stream has not made.
MIN_HALF_WIDTH = 1e-6


class Observation(NamedTuple):
    """One timestep as the network sees it: all (batch, features), in scaled units.

    `values` repeats the last value where one is missing. `previous` holds the values of the timestep before.
    """

    values: Tensor
    previous: Tensor
    missing: Tensor


class Monitor(nn.Module, ABC):
    """The interface of a monitor. `states` and `outputs` are names; each state is [batch, n], zero in a new stream."""

    states: tuple[str, ...]
    outputs: tuple[str, ...]
    widths: tuple[int, ...]  # n of each state
    targets: Tensor  # (targets,)
    # Moves the threshold of every decision. Only the parity gate sets it: a value on a threshold may round to either side,
    # and both decisions are right.
    threshold_shift: float = 0.0

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return tuple(torch.zeros(batch, width, device=self.targets.device) for width in self.widths)

    @abstractmethod
    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """One timestep and the head's outputs (batch, ...) for it, scaled -> own outputs, scaled, and the next state."""

    @abstractmethod
    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs as they are served; `mean` and `std` (features,) are those of the scaler."""

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  most outputs have no unit
        """The unit of a difference in an output; broadcasts over it."""
        return std.new_ones(())

    def above(self, value: Tensor, threshold: Tensor | float) -> Tensor:
        """Whether the value is above the threshold."""
        return value > (threshold + self.threshold_shift if self.threshold_shift else threshold)


class Intervals(Monitor):
    """Intervals whose long-run coverage is kept online.

    Conformalised quantile regression (Romano, Patterson and Candes, 2019) with a quantile tracker (Gibbs and Candes,
    2021; Angelopoulos, Candes and Tibshirani, Conformal PID Control, 2023).

    A forecast has a centre c and a half-width w. They come from the pair of quantiles nearest to the coverage; without
    such a pair c is the forecast and w is 0. The interval is c -/+ max(w + q, 0), so the ends cannot cross. The true value
    is known one horizon later. Then q rises by rate * coverage if it lies outside, and falls by rate * (1 - coverage) if it
    lies inside. The interval counts as it was served, whatever q has become since. So for every series the share of
    served intervals that hold the true value converges to the coverage.

    State: `intervals` [batch, n]. It holds the centres whose true values are not known yet, the oldest first, horizon by horizon, each
    with all targets; then their half-widths in the same order; then q less its start [horizons * targets].
    """

    outputs = ("interval",)
    states = ("intervals",)
    start: Tensor  # (horizons * targets,), q of a new stream
    scale: Tensor  # (horizons * targets,), mean absolute deviation of the scores
    step_size: Tensor  # (horizons * targets,), in units of the scale
    columns: Tensor  # (horizons * targets,), the forecast feature

    def __init__(self, task: Forecast, coverage: float) -> None:
        super().__init__()
        self.coverage = coverage
        self.pair = _pair(task.quantiles, coverage)
        self.horizons = task.horizons
        self.count = len(task.targets)
        self.shape = (len(task.horizons), self.count)
        size = math.prod(self.shape)
        # The parts of the state: for each horizon the forecast that is due now, then the others.
        self.parts = [part for horizon in task.horizons for part in (self.count, (horizon - 1) * self.count) if part]
        self.widths = (2 * sum(self.parts) + size,)
        step_size = torch.tensor([INTERVAL_RATE / math.sqrt(horizon) for horizon in task.horizons])
        self.register_buffer("start", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("step_size", step_size.repeat_interleave(self.count), persistent=False)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("columns", self.targets.repeat(len(task.horizons)), persistent=False)

    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """`interval` (batch, horizons, targets, 2)."""
        *past, shift = torch.split(state[0], [*self.parts, *self.parts, len(self.start)], dim=-1)
        matured, waiting = self._mature(past)
        centre, half = torch.cat(matured, dim=-1).chunk(2, dim=-1)
        missed = self.above((observation.values.index_select(-1, self.columns) - centre).abs(), half)
        step = self.step_size * self.scale
        moved = torch.where(missed, step * self.coverage, step * (self.coverage - 1.0))
        unknown = (half <= 0.0) | observation.missing.index_select(-1, self.columns)
        shift = shift + torch.where(unknown, 0.0, moved)
        centre, half = self.band(head_outputs)
        half = torch.clamp(half + (self.start + shift), min=MIN_HALF_WIDTH)
        interval = torch.stack([centre - half, centre + half], dim=-1).reshape(-1, *self.shape, 2)
        new_forecasts = torch.split(torch.cat([centre, half], dim=-1), self.count, dim=-1)
        kept = [part for old, new in zip(waiting, new_forecasts, strict=True) for part in (*old, new)]
        return {"interval": interval}, (torch.cat([*kept, shift], dim=-1),)

    def _mature(self, past: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The forecasts that are due now, and those that wait: the centres of each horizon, then the half-widths."""
        parts = iter(past)
        matured, waiting = [], []
        for horizon in (*self.horizons, *self.horizons):
            matured.append(next(parts))
            waiting.append([next(parts)] if horizon > 1 else [])
        return matured, waiting

    def band(self, head_outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Centre and half-width of a forecast: each (batch, horizons * targets)."""
        if self.pair is None:
            centre = head_outputs["forecast"].flatten(1)
            return centre, torch.zeros_like(centre)
        low, high = (head_outputs["quantiles"].select(-1, index).flatten(1) for index in self.pair)
        return (low + high) * 0.5, (high - low) * 0.5

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """In the targets' units."""
        mean, std = mean[self.targets].unsqueeze(-1), std[self.targets].unsqueeze(-1)
        return {"interval": outputs["interval"] * std + mean}

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  there is one output
        """The targets' standard deviations."""
        return std[self.targets].unsqueeze(-1)


def _pair(quantiles: Sequence[float], coverage: float) -> tuple[int, int] | None:
    """The indices of two quantiles, symmetric around the median, whose coverage is nearest to the stated one."""
    pairs = [
        (low, high)
        for low, below in enumerate(quantiles)
        for high, above in enumerate(quantiles)
        if below < above and abs(below + above - 1.0) < 1e-6
    ]
    return min(pairs, key=lambda pair: abs(quantiles[pair[1]] - quantiles[pair[0]] - coverage), default=None)
