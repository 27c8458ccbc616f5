"""The running level of each feature: the recurrent layers see values relative to it.

A network that sees values as they are learns that a level means something, and is wrong on each level that it has not
learned from. A sensor that drifts or was moved has such a level.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State

# Timesteps of one matrix product: its size is the square of this.
BLOCK = 128
# Less than the weight of a single value of the slowest level.
MIN_WEIGHT = 1e-9


class Level(nn.Module):
    """An exponential mean of each feature, carried as state.

    The weight of a value falls by 1 - 1 / `steps` with each timestep. The weights always sum to 1: the mean of a new stream
    is that of the values it has seen. A missing value counts as the last one.

    State: `level` [batch, 2 * features], the sum of the weighted values, and that of the weights.

    Args:
        features: how many there are.
        steps: the time constant, in timesteps.

    """

    states = ("level",)
    kernel: Tensor  # (BLOCK, BLOCK)
    decay: Tensor  # (BLOCK, 1, 1)
    spread: Tensor  # (features,), what a value relative to its level is divided by; 0 for a feature without a level

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.features = features
        self.rate = 1.0 / steps
        self.register_buffer("spread", torch.ones(features))
        # What each value of a block counts for at each of its timesteps, and what the sums before the block do.
        ages = np.arange(BLOCK)
        decay = (1.0 - self.rate) ** (ages + 1)
        kernel = np.tril(self.rate * (1.0 - self.rate) ** np.maximum(ages[:, None] - ages, 0))
        self.register_buffer("kernel", torch.from_numpy(kernel.astype(np.float32)), persistent=False)
        self.register_buffer("decay", torch.from_numpy(decay.astype(np.float32)).view(-1, 1, 1), persistent=False)

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return (torch.zeros(batch, 2 * self.features, device=self.spread.device),)

    def sequence(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, features) filled, and whether missing -> the same relative to the level, and the next state."""
        parts, now = [], state[0]
        for part in torch.split(self._summands(values, missing, state), BLOCK):
            own = self.kernel[: len(part), : len(part)] @ part.flatten(1)
            parts.append(own.view(part.shape) + self.decay[: len(part)] * now)
            now = parts[-1][-1]
        sums = torch.cat(parts) if len(parts) > 1 else parts[0]
        return self._relative(values, sums), (now.clone(),)

    def advance(self, values: Tensor, missing: Tensor, state: State) -> State:
        """The next state that `sequence` returns, but for rounding. It costs one product, however long the sequence is."""
        ages = torch.arange(len(values) - 1, -1, -1, device=values.device, dtype=torch.float64)
        weights = (self.rate * (1.0 - self.rate) ** ages).to(values.dtype)
        sums = (weights @ self._summands(values, missing, state).flatten(1)).view_as(state[0])
        return (sums + (1.0 - self.rate) ** len(values) * state[0],)

    def step(self, values: Tensor, missing: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, features) filled, and whether missing -> the same relative to the level, and the next state."""
        weights = state[0][:, self.features :]
        seen = torch.where(missing & (weights <= 0.0), 0.0, 1.0)
        now = state[0] + (torch.cat([values, seen], dim=-1) - state[0]) * self.rate
        return self._relative(values, now), (now,)

    def _summands(self, values: Tensor, missing: Tensor, state: State) -> Tensor:
        """(time, batch, 2 * features): what each timestep adds to the sums. Before a feature is seen, both are 0."""
        seen = (missing.logical_not().cumsum(dim=0) > 0) | (state[0][:, self.features :] > 0.0)
        return torch.cat([values, seen.to(values.dtype)], dim=-1)

    def _relative(self, values: Tensor, sums: Tensor) -> Tensor:
        level = sums[..., : self.features] / sums[..., self.features :].clamp(min=MIN_WEIGHT)
        levelled = self.spread > 0.0
        return torch.where(levelled, (values - level) / torch.where(levelled, self.spread, 1.0), values)
