"""The linear link: a frozen linear regression on a window of the past, which the recurrent layers correct.

It is solved in closed form before the training, see `judging.ridge`, and is part of the exported graph.
"""

from typing import cast

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.settings import Forecast


class LinearLink(nn.Module):
    """A linear regression for each target, on its own past and on the present values of all features.

    The past is taken less the present value, and what is forecast is the change from it. All values are in scaled units.

    State: `window` [batch, targets * lags]. For each target it holds the values before the present one, the oldest first,
    and then 1 once the target has been observed. The first observed value of a new stream fills the window: until the
    window is full, nothing is known to have been different.
    """

    states = ("window",)
    targets: Tensor  # (targets,)

    def __init__(self, features: int, task: Forecast) -> None:
        super().__init__()
        self.lags = task.lags
        self.count = len(task.targets)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        width = self.lags - 1 + features
        # One for each target: a matrix product with the batch as its rows gives each row the same bits in every batch.
        lines = [nn.Linear(width, len(task.horizons)) for _ in task.targets]
        self.lines = cast(list[nn.Linear], nn.ModuleList(lines))
        for line in self.lines:
            line.requires_grad_(False)
            nn.init.zeros_(line.weight)
            nn.init.zeros_(line.bias)

    def set_weights(self, target: int, window: Tensor, features: Tensor, intercepts: Tensor) -> None:
        """Set those of one target: of the window (lags - 1, horizons), the latest first, the features (features, horizons), and (horizons,)."""
        line = self.lines[target]
        line.weight.copy_(torch.cat([window.flip(0), features]).T)
        line.bias.copy_(intercepts)

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return (torch.zeros(batch, self.count * self.lags, device=self.targets.device),)

    @torch.no_grad()
    def sequence(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, features) filled, and whether missing -> (time, batch, horizons, targets) and the next state."""
        history, seen = self._history(values, missing, state)
        windows = history.unfold(-1, self.lags, 1)  # (batch, targets, time, lags)
        everything = values.transpose(0, 1)  # (batch, time, features)
        own = everything.index_select(-1, self.targets)
        parts = []
        for target, line in enumerate(self.lines):
            now = own[:, :, target : target + 1]
            centred = (windows[:, target, :, :-1] - now) * seen[:, :, target].T.unsqueeze(-1)
            parts.append(line(torch.cat([centred, everything], dim=-1)) + now)
        return torch.stack(parts, dim=-1).transpose(0, 1), self._state_after(history, seen)

    @torch.no_grad()
    def advance(self, values: Tensor, missing: Tensor, state: State) -> State:
        """The next state of `sequence` alone."""
        return self._state_after(*self._history(values, missing, state))

    def step(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, features) filled, and whether missing -> (batch, horizons, targets) and the next state."""
        past, seen = self._parts(state)
        now = values.index_select(-1, self.targets).unsqueeze(-1)  # (batch, targets, 1)
        unknown = missing.index_select(-1, self.targets).unsqueeze(-1)
        past = torch.where(unknown | (seen > 0.0), past, now)
        centred = past - now
        parts = [
            line(torch.cat([centred[:, target], values], dim=-1)) + now[:, target]
            for target, line in enumerate(self.lines)
        ]
        seen = torch.where(unknown, seen, 1.0)
        return torch.stack(parts, dim=-1), (torch.cat([past[..., 1:], now, seen], dim=-1).flatten(1),)

    def _parts(self, state: State) -> tuple[Tensor, Tensor]:
        """The past (batch, targets, lags - 1), and whether the target has been observed (batch, targets, 1)."""
        parts = torch.unflatten(state[0], -1, (self.count, self.lags))
        return parts[..., :-1], parts[..., -1:]

    def _history(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The past and the present values (batch, targets, lags - 1 + time), and whether observed yet (time, batch, targets)."""
        past, before = self._parts(state)
        own = values.index_select(-1, self.targets)  # (time, batch, targets)
        history = torch.cat([past, own.permute(1, 2, 0)], dim=-1)
        old = before.squeeze(-1) > 0.0
        if old.all():
            return history, torch.ones_like(own)
        observed = ~missing.index_select(-1, self.targets)
        seen = (observed.cumsum(dim=0) > 0) | old
        first = (~seen).sum(dim=0)  # (batch, targets) the timestep of the first value, or their number
        value = own.gather(0, first.clamp(max=len(own) - 1).unsqueeze(0)).squeeze(0)
        place = torch.arange(history.shape[-1], device=own.device) - (self.lags - 1)
        fresh = ~old & (first < len(own))
        before_first = fresh.unsqueeze(-1) & (place < first.unsqueeze(-1))
        return torch.where(before_first, value.unsqueeze(-1), history), seen.to(own.dtype)

    def _state_after(self, history: Tensor, seen: Tensor) -> State:
        kept = history[..., history.shape[-1] - (self.lags - 1) :]
        return (torch.cat([kept, seen[-1].unsqueeze(-1)], dim=-1).flatten(1),)
