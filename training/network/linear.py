"""The linear link: a frozen linear regression on a window of the past, which the recurrent layers correct.

It is solved in closed form before the training, see `judging.ridge`, and is part of the exported graph.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.settings import Forecast


class LinearLink(nn.Module):
    """A linear regression for each target, on its own past and on the present values of all features.

    The past is taken less the present value, and what is forecast is the change from it. All values are in scaled units.

    There is a regression for each of several numbers of lags, and the one with the most that a stream has seen forecasts.

    State: `window` [batch, targets * window]. For each target it holds the values before the present one, the oldest first,
    and then the number of timesteps since the first value, up to the longest window. The first value of a new stream fills
    the window.
    """

    states = ("window",)
    targets: Tensor  # (targets,)
    begin: Tensor  # (lags,)
    end: Tensor  # (lags,)

    def __init__(self, features: int, task: Forecast) -> None:
        super().__init__()
        self.window = max(task.lags[-1], 2)
        self.count = len(task.targets)
        self.shape = (len(task.lags), len(task.horizons))
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        # The timesteps from which on each of the regressions is used, and from which on the next one is.
        begin = torch.tensor([0.0, *task.lags[1:]])
        self.register_buffer("begin", begin, persistent=False)
        self.register_buffer("end", torch.cat([begin[1:], torch.tensor([torch.inf])]), persistent=False)
        width = self.window - 1 + features
        # One for each target: a matrix product with the batch as its rows gives each row the same bits in every batch.
        lines = [nn.Linear(width, math.prod(self.shape)) for _ in task.targets]
        self.lines = cast(list[nn.Linear], nn.ModuleList(lines))
        for line in self.lines:
            line.requires_grad_(False)
            nn.init.zeros_(line.weight)
            nn.init.zeros_(line.bias)

    def set_weights(self, target: int, window: Tensor, features: Tensor, intercepts: Tensor) -> None:
        """Set those of one target, for each number of lags: window (lags, most lags - 1, horizons), the latest first, features (lags, features, horizons), and intercepts (lags, horizons)."""
        line = self.lines[target]
        own = torch.zeros(len(window), self.window - 1, window.shape[-1])
        own[:, self.window - 1 - window.shape[1] :] = window.flip(1)
        line.weight.copy_(torch.cat([own, features], dim=1).transpose(1, 2).flatten(0, 1))
        line.bias.copy_(intercepts.flatten())

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return (torch.zeros(batch, self.count * self.window, device=self.targets.device),)

    @torch.no_grad()
    def sequence(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, features) filled, and whether missing -> (time, batch, horizons, targets) and the next state."""
        history, age = self._history(values, missing, state)
        windows = history.unfold(-1, self.window, 1)  # (batch, targets, time, window)
        everything = values.transpose(0, 1)  # (batch, time, features)
        own = everything.index_select(-1, self.targets)
        parts = []
        for target in range(self.count):
            now, old = own[:, :, target : target + 1], age[:, :, target : target + 1].transpose(0, 1)
            # Before the first value there is nothing, though `history` holds that value there already.
            centred = (windows[:, target, :, :-1] - now) * (old > 0.0)
            parts.append(self._forecast(target, centred, everything, old) + now)
        return torch.stack(parts, dim=-1).transpose(0, 1), self._state_after(history, age)

    @torch.no_grad()
    def advance(self, values: Tensor, missing: Tensor, state: State) -> State:
        """The next state of `sequence` alone."""
        return self._state_after(*self._history(values, missing, state))

    def step(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, features) filled, and whether missing -> (batch, horizons, targets) and the next state."""
        past, age = self._parts(state)
        now = values.index_select(-1, self.targets).unsqueeze(-1)  # (batch, targets, 1)
        unknown = missing.index_select(-1, self.targets).unsqueeze(-1) & (age <= 0.0)
        past = torch.where((age > 0.0) | unknown, past, now)
        age = torch.where(unknown, 0.0, (age + 1.0).clamp(max=float(self.window)))
        centred = past - now
        parts = [
            self._forecast(target, centred[:, target], values, age[:, target]) + now[:, target]
            for target in range(self.count)
        ]
        return torch.stack(parts, dim=-1), (torch.cat([past[..., 1:], now, age], dim=-1).flatten(1),)

    def _forecast(self, target: int, centred: Tensor, values: Tensor, age: Tensor) -> Tensor:
        """(..., window - 1), (..., features) and (..., 1) -> the change to each horizon (..., horizons)."""
        every = self.lines[target](torch.cat([centred, values], dim=-1)).unflatten(-1, self.shape)
        chosen = (age >= self.begin) & (age < self.end)  # (..., lags)
        return torch.where(chosen.unsqueeze(-1), every, 0.0).sum(dim=-2)

    def _parts(self, state: State) -> tuple[Tensor, Tensor]:
        """The past (batch, targets, window - 1), and the timesteps since the first value (batch, targets, 1)."""
        parts = torch.unflatten(state[0], -1, (self.count, self.window))
        return parts[..., :-1], parts[..., -1:]

    def _history(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Past and present values (batch, targets, window - 1 + time), and timesteps since the first (time, batch, targets)."""
        past, before = self._parts(state)
        own = values.index_select(-1, self.targets)  # (time, batch, targets)
        history = torch.cat([past, own.permute(1, 2, 0)], dim=-1)
        before = before.squeeze(-1)
        old = before > 0.0
        observed = ~missing.index_select(-1, self.targets)
        seen = (observed.cumsum(dim=0) > 0) | old
        age = (before + seen.cumsum(dim=0)).clamp(max=float(self.window))
        if old.all():
            return history, age
        first = (~seen).sum(dim=0)  # (batch, targets) the timestep of the first value, or their number
        value = own.gather(0, first.clamp(max=len(own) - 1).unsqueeze(0)).squeeze(0)
        place = torch.arange(history.shape[-1], device=own.device) - (self.window - 1)
        fresh = ~old & (first < len(own))
        before_first = fresh.unsqueeze(-1) & (place < first.unsqueeze(-1))
        return torch.where(before_first, value.unsqueeze(-1), history), age

    def _state_after(self, history: Tensor, age: Tensor) -> State:
        kept = history[..., history.shape[-1] - (self.window - 1) :]
        return (torch.cat([kept, age[-1].unsqueeze(-1)], dim=-1).flatten(1),)
