"""The network, written once: guard -> scaler -> cells -> head. `sequence()` trains it, `step()` is what is exported.

Raw units go in and come out. Inside, everything is in scaled units: the distance from the training mean in training
standard deviations. So a state of zeros means "every sensor was last seen at its training mean", and a fresh stream
needs no special start.
"""

from typing import cast

import torch
from torch import Tensor, nn

from training.cells import CELLS, Cell, State
from training.data import Scaler
from training.settings import Architecture


class Network(nn.Module):
    """A recurrent forecaster.

    State, in order: `last` [batch, features], the last seen value of each feature in scaled units, then the states of
    each layer, for LSTM `h0`, `c0`, `h1`, ... [1, batch, hidden]. All are zero in a fresh stream.
    """

    mean: Tensor  # (features,)
    std: Tensor  # (features,)

    def __init__(self, architecture: Architecture, scaler: Scaler) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("std", torch.from_numpy(scaler.std))
        # A layer sees each feature and whether it is missing: a value held for an hour is worth less than a fresh one.
        widths = [2 * architecture.features] + [architecture.hidden] * (architecture.layers - 1)
        cell = CELLS[architecture.cell]
        self.cells = nn.ModuleList([cell(width, architecture.hidden) for width in widths])
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = Head(architecture)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the state inputs, in order; the output that replaces one is called `<name>_next`."""
        states = CELLS[self.architecture.cell].states
        return ("last", *(f"{name}{layer}" for layer in range(self.architecture.layers) for name in states))

    def fresh_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        last = torch.zeros(batch, self.architecture.features)
        return (last, *(torch.zeros(1, batch, self.architecture.hidden) for _ in self.state_names[1:]))

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, features) in raw units -> (time, batch, horizons, targets) in raw units, and the last state."""
        missing = torch.isnan(x)
        seen = _fill_forward((x - self.mean) / self.std, missing, state[0])
        y = torch.cat([seen, missing.to(seen.dtype)], dim=-1)
        following: list[Tensor] = [seen[-1]]
        for index, (layer, carried) in enumerate(self._layers(state)):
            y, after = layer.sequence(y if index == 0 else self.dropout(y), carried)
            following.extend(after)
        return self.head(y, seen, self.mean, self.std), tuple(following)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, features) in raw units -> (batch, horizons, targets) in raw units, and the next state."""
        missing = torch.isnan(x)
        seen = torch.where(missing, state[0], (x - self.mean) / self.std)
        y = torch.cat([seen, missing.to(seen.dtype)], dim=-1)
        following: list[Tensor] = [seen]
        for layer, carried in self._layers(state):
            y, after = layer.step(y, carried)
            following.extend(after)
        return self.head(y, seen, self.mean, self.std), tuple(following)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`step()` with the tensors in a row: what the exporter traces."""
        forecast, following = self.step(x, state)
        return forecast, *following

    def prepare_export(self) -> None:
        """Lay the weights out as ONNX wants them."""
        for layer in self.cells:
            cast(Cell, layer).prepare_export()

    def _layers(self, state: State) -> list[tuple[Cell, State]]:
        """Each layer with its part of the state."""
        size = (len(state) - 1) // len(self.cells)
        return [
            (cast(Cell, layer), state[1 + index * size : 1 + (index + 1) * size])
            for index, layer in enumerate(self.cells)
        ]


class Head(nn.Module):
    """Forecast = a line through the last layer, plus a share of the target's last seen value, in raw units.

    The share is learned for each horizon and starts at 1: an untrained network is close to persistence, which is hard to
    beat one step ahead and useless a day ahead.
    """

    targets: Tensor  # (targets,)

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.shape = (len(architecture.horizons), len(architecture.targets))
        self.line = nn.Linear(architecture.hidden, self.shape[0] * self.shape[1])
        self.share = nn.Parameter(torch.ones(self.shape))
        self.register_buffer("targets", torch.tensor(architecture.targets), persistent=False)

    def forward(self, y: Tensor, seen: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(..., hidden) and (..., features) scaled -> (..., horizons, targets) raw."""
        own = seen.index_select(-1, self.targets).unsqueeze(-2)  # (..., 1, targets)
        scaled = self.line(y).unflatten(-1, self.shape) + self.share * own
        return cast(Tensor, scaled * std[self.targets] + mean[self.targets])


def build_network(architecture: Architecture, scaler: Scaler, seed: int) -> Network:
    """A network with the starting weights that belong to the seed; leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture, scaler)


def _fill_forward(scaled: Tensor, missing: Tensor, last: Tensor) -> Tensor:
    """Replace what is missing by the value before it, and by `last` before the first: (time, batch, features)."""
    held = torch.cat([last.unsqueeze(0), scaled])
    rows = torch.arange(1, len(held)).view(-1, 1, 1)
    source = torch.where(missing, 0, rows).cummax(dim=0).values  # 0 is `last`
    return held.gather(0, source)
