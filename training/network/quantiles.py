"""The monitor that lets the quantiles of a forecast follow the errors that it makes."""

import torch
from torch import Tensor

from tidegate.training.network.cells import State
from tidegate.training.network.heads import Outputs, quantile_steps
from tidegate.training.network.monitors import Monitor, Observation
from tidegate.training.settings import Forecast

# How far a factor moves after a true value beyond its quantile, divided by the root of the horizon: errors of neighbouring
# timesteps are alike, and feedback comes so much later. One in ten timesteps beyond its quantile holds the factor where it
# is; twice as many double it within some fifty timesteps at the next horizon.
RATE = 0.2
# How far a factor moves at most before the first true value of a forecast that it made is known, one horizon later. What moves
# a factor is the same all the while: errors a day ahead last a day. A factor that followed them step by step would overshoot,
# and then be as wrong on the other side.
SWING = 0.5
# The range of a factor. Below it a quiet week would leave no room for the next storm.
LOWEST, HIGHEST = 0.25, 8.0
# The horizons that are watched are at least this factor apart. The others follow the nearest one below: a state that holds
# each forecast until its time comes would otherwise have the size of the sum of all horizons.
APART = 2


class Quantiles(Monitor):
    """The quantiles of each forecast, wider after errors that they did not hold, and narrower after others.

    A quantile is the median plus or minus steps. Each step has a factor for each horizon and target. The true value is known
    one horizon later. The factor rises by rate * p if the value lies beyond the quantile of the step, and falls by
    rate * (1 - p) if it does not; p is the share that should lie on this side of it. So the share of the values beyond a
    quantile tends to what it should be, whatever the series does (the quantile tracker of Gibbs and Candes, 2021, see
    `monitors.Intervals`).

    State: `spread` [batch, n]. For each horizon that is watched it holds the forecasts whose true values are not known yet, the oldest
    first, each with the median and the other quantiles of all targets; then each factor less its start.
    """

    outputs = ("quantiles",)
    states = ("spread",)
    start: Tensor  # (watched, targets, steps), the factors of a new stream
    rate: Tensor  # (watched, 1, 1)
    inside: Tensor  # (steps,), the share of the values that should not lie beyond the quantile of a step
    side: Tensor  # (steps,), -1 below the median, 1 above
    matrix: Tensor  # (steps, quantiles), see `heads.quantile_steps`
    columns: Tensor  # (watched,), the place of each among the horizons
    nearest: Tensor  # (horizons,), the place of the watched horizon that each one follows

    def __init__(self, task: Forecast) -> None:
        super().__init__()
        self.levels = task.quantiles
        places = _watched(task.horizons)
        self.horizons = [task.horizons[place] for place in places]
        self.count = len(task.targets)
        self.steps = sum(level != 0.5 for level in task.quantiles)
        self.shape = (len(places), self.count, self.steps)
        # A pending forecast: the median, then the quantile of each step.
        self.width = self.count * (1 + self.steps)
        self.parts = [horizon * self.width for horizon in self.horizons]
        factors = len(places) * self.count * self.steps
        self.widths = (sum(self.parts) + factors,)
        others = [level for level in task.quantiles if level != 0.5]
        self.places = [task.quantiles.index(level) for level in others]
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("start", torch.ones(self.shape))
        rates = torch.tensor([min(RATE / horizon**0.5, SWING / horizon) for horizon in self.horizons])
        self.register_buffer("rate", rates.view(-1, 1, 1), persistent=False)
        self.register_buffer("inside", torch.tensor([max(level, 1.0 - level) for level in others]), persistent=False)
        self.register_buffer("side", torch.tensor([1.0 if level > 0.5 else -1.0 for level in others]), persistent=False)
        self.register_buffer("matrix", quantile_steps(task.quantiles), persistent=False)
        self.register_buffer("columns", torch.tensor(places), persistent=False)
        nearest = [sum(horizon >= watched for watched in self.horizons) - 1 for horizon in task.horizons]
        self.register_buffer("nearest", torch.tensor(nearest), persistent=False)

    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """`quantiles` (batch, horizons, targets, quantiles)."""
        *past, shift = torch.split(state[0], [*self.parts, self.widths[0] - sum(self.parts)], dim=-1)
        shift = torch.unflatten(shift, -1, self.shape)
        due = torch.stack([part[:, : self.width] for part in past], dim=1)
        due = torch.unflatten(due, -1, (self.count, 1 + self.steps))  # (batch, watched, targets, 1 + steps)
        value = observation.values.index_select(-1, self.targets).view(-1, 1, self.count, 1)
        unknown = observation.missing.index_select(-1, self.targets).view(-1, 1, self.count, 1)
        beyond = self.above((value - due[..., 1:]) * self.side, 0.0)
        moved = torch.where(beyond, self.rate * self.inside, self.rate * (self.inside - 1.0))
        # Steps are never zero, so quantiles at the median mark a forecast that a new stream has not made.
        unknown = unknown | (due[..., 1:] == due[..., :1])
        factor = self.start + shift + torch.where(unknown, 0.0, moved)
        factor = factor.clamp(LOWEST, HIGHEST)
        median = head_outputs["forecast"].unsqueeze(-1)
        quantiles = (
            median
            + (self._sizes(median, head_outputs["quantiles"]) * factor.index_select(1, self.nearest)) @ self.matrix
        )
        chosen = quantiles.index_select(1, self.columns)
        new = torch.cat([median.index_select(1, self.columns), chosen[..., self.places]], dim=-1).flatten(2)
        kept = [torch.cat([part[:, self.width :], new[:, place]], dim=-1) for place, part in enumerate(past)]
        return {"quantiles": quantiles}, (torch.cat([*kept, (factor - self.start).flatten(1)], dim=-1),)

    def _sizes(self, median: Tensor, quantiles: Tensor) -> Tensor:
        """(batch, horizons, targets, steps), the steps that the network gives."""
        edges, sizes = dict(zip(self.levels, quantiles.unbind(-1), strict=True)), []
        edges[0.5] = median.squeeze(-1)
        rising = sorted(edges)
        for level in self.levels:
            place = rising.index(level)
            if level < 0.5:
                sizes.append(edges[rising[place + 1]] - edges[level])
            elif level > 0.5:
                sizes.append(edges[level] - edges[rising[place - 1]])
        return torch.stack(sizes, dim=-1)

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """In the targets' units."""
        mean, std = mean[self.targets].unsqueeze(-1), std[self.targets].unsqueeze(-1)
        return {"quantiles": outputs["quantiles"] * std + mean}

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  there is one output
        """The targets' standard deviations."""
        return std[self.targets].unsqueeze(-1)


def _watched(horizons: tuple[int, ...]) -> list[int]:
    """The places of the horizons that are watched."""
    places = [0]
    for place, horizon in enumerate(horizons):
        if horizon >= APART * horizons[places[-1]]:
            places.append(place)
    return places
