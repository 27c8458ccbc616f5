"""The network, written once: guard -> scaler -> convolution -> cells -> head -> monitors.

`sequence()` trains it, `step()` is what is exported.

Raw units go in and come out. Inside, everything is in scaled units: the distance from the training mean in training
standard deviations. So a state of zeros means "every sensor was last seen at its training mean", and a fresh stream
needs no special start.
"""

from itertools import islice, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from training.data.scaler import Scaler
from training.data.series import Floats
from training.network.cells import CELLS, Cell, Convolution, State
from training.network.heads import Outputs, build_head
from training.network.logarithm import logarithm
from training.network.monitors import Monitor, Reading, build_monitors
from training.settings import Architecture, Classify

# In usual steps of a feature. The first timestep of a stream comes from the training mean and may be hundreds of a slow
# sensor's steps away: no such number is to reach the cells.
LEAP = 5.0


class Network(nn.Module):
    """A recurrent network.

    State, in order: `last` [batch, features], the last seen value of each feature in scaled units; `past` [kernel - 1,
    batch, inputs] of a convolution; the states of each layer, for LSTM `h0`, `c0`, `h1`, ... [1, batch, hidden]; those of
    the head; those of the monitors. The batch is the last axis but one of each, and all are zero in a fresh stream.
    """

    mean: Tensor  # (features,)
    std: Tensor  # (features,)
    pace: Tensor  # (features,) how far a feature usually moves in a timestep, in scaled units

    def __init__(self, architecture: Architecture, scaler: Scaler) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("std", torch.from_numpy(scaler.std))
        self.register_buffer("pace", torch.from_numpy(scaler.step / scaler.std))
        # Each feature, how far it has moved, and whether it is missing: a value held for an hour is worth less than a
        # fresh one, and of a slow sensor the movement is what counts and the value hides it.
        width = (1 + architecture.changes + (architecture.missing == "mask")) * architecture.features
        self.front = Convolution(width, architecture.filters, architecture.kernel) if architecture.kernel > 1 else None
        widths = [self.front.hidden if self.front else width] + [architecture.hidden] * (architecture.layers - 1)
        cell = CELLS[architecture.cell]
        self.cells = nn.ModuleList([cell(width, architecture.hidden, architecture.activation) for width in widths])
        if architecture.memory is not None:
            for layer in self.cells:
                cast(Cell, layer).remember(architecture.memory)
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = build_head(architecture, width)
        self.monitors = nn.ModuleList(build_monitors(architecture))

    @property
    def layers(self) -> list[Cell]:
        """The convolution if there is one, then the recurrent layers, in order."""
        cells = [cast(Cell, layer) for layer in self.cells]
        return [self.front, *cells] if self.front else cells

    @property
    def watchers(self) -> list[Monitor]:
        """The monitors, in order."""
        return [cast(Monitor, monitor) for monitor in self.monitors]

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the state inputs, in order; the output that replaces one is called `<name>_next`."""
        front = self.front.states if self.front else ()
        carried = (f"{name}{index}" for index, layer in enumerate(self.cells) for name in cast(Cell, layer).states)
        watched = (name for monitor in self.watchers for name in monitor.states)
        return ("last", *front, *carried, *self.head.states, *watched)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return (*self.head.outputs, *(name for monitor in self.watchers for name in monitor.outputs))

    def unit(self, output: str) -> Floats:
        """What a difference in an output is measured in: the target's standard deviation, or 1; broadcasts over it."""
        speaker = next((monitor for monitor in self.watchers if output in monitor.outputs), self.head)
        return speaker.unit(output, self.std).cpu().numpy()

    def fresh_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        last = torch.zeros(batch, self.architecture.features, device=self.mean.device)
        carried = (part for layer in self.layers for part in layer.fresh_state(batch))
        watched = (part for monitor in self.watchers for part in monitor.fresh_state(batch))
        return (last, *carried, *self.head.fresh_state(batch), *watched)

    def sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """(time, batch, features) in raw units -> the outputs (time, batch, ...) as they are served, and the last state."""
        said, following = self.scaled_sequence(x, state)
        outputs = self.head.raw(said, self.mean, self.std)
        if not self.watchers:
            return outputs, following
        core = len(following) - sum(len(monitor.states) for monitor in self.watchers)
        last, watched, told = state[0], state[core:], []
        for row, now in enumerate(x):
            resets = self._resets(now)
            if resets is not None:
                last, *renewed = _renewed((last, *watched), resets)
                watched = tuple(renewed)
            reading = self._read(now, last)
            more, watched = self._watch(reading, {name: part[row] for name, part in said.items()}, watched)
            last = reading.seen
            told.append(more)
        outputs |= {name: torch.stack([more[name] for more in told]) for name in told[0]}
        return outputs, (*following[:core], *watched)

    def scaled_sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """The head's outputs in scaled units, which are learned from; the monitors' states stay as they are."""
        resets = self._resets(x)
        if resets is None or not resets.any():
            return self._uncut_sequence(x, state)
        # Cut before each timestep at which some stream of the batch begins anew: only there may a state be replaced.
        cuts = torch.nonzero(resets.any(dim=1)).flatten().tolist()
        parts: list[Outputs] = []
        for first, end in pairwise(sorted({0, *cuts, len(x)})):
            outputs, state = self._uncut_sequence(x[first:end], _renewed(state, resets[first]))
            parts.append(outputs)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, state

    def _uncut_sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        missing = torch.isnan(x)
        seen = fill_forward(self.scaled(x), missing, state[0])
        told = self._told(seen, torch.cat([state[0].unsqueeze(0), seen[:-1]]), missing)
        y = told
        parts = iter(state[1:])
        following: list[Tensor] = [seen[-1]]
        for index, layer in enumerate(self.layers):
            carried = tuple(islice(parts, len(layer.states)))
            y, after = layer.sequence(y if index == 0 else self.dropout(y), carried)
            following.extend(after)
        outputs, after = self.head.sequence(self.dropout(y), seen, told, tuple(islice(parts, len(self.head.states))))
        return outputs, (*following, *after, *parts)

    def step(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """(batch, features) in raw units -> the outputs (batch, ...) as they are served, and the next state."""
        resets = self._resets(x)
        if resets is not None:
            state = _renewed(state, resets)
        now = self._read(x, state[0])
        told = self._told(now.seen, now.last, now.missing)
        y = told
        parts = iter(state[1:])
        following: list[Tensor] = [now.seen]
        for layer in self.layers:
            y, after = layer.step(y, tuple(islice(parts, len(layer.states))))
            following.extend(after)
        said, after = self.head.step(y, now.seen, told, tuple(islice(parts, len(self.head.states))))
        more, watched = self._watch(now, said, tuple(parts))
        return self.head.raw(said, self.mean, self.std) | more, (*following, *after, *watched)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`step()` with the tensors in a row: what the exporter traces."""
        outputs, following = self.step(x, state)
        return *outputs.values(), *following

    def prepare_export(self) -> None:
        """Lay the weights out as ONNX wants them."""
        for layer in self.layers:
            layer.prepare_export()

    def _read(self, x: Tensor, last: Tensor) -> Reading:
        """One timestep (batch, features) in scaled units, what is missing held at its last value."""
        missing = torch.isnan(x)
        return Reading(torch.where(missing, last, self.scaled(x)), last, missing)

    def _watch(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """The outputs of all monitors for one timestep as they are served, and their next states."""
        parts = iter(state)
        outputs: Outputs = {}
        following: list[Tensor] = []
        for monitor in self.watchers:
            more, after = monitor.step(now, said, tuple(islice(parts, len(monitor.states))))
            outputs |= monitor.raw(more, self.mean, self.std)
            following.extend(after)
        return outputs, tuple(following)

    def _resets(self, x: Tensor) -> Tensor | None:
        """(...) whether so long a silence lies before a timestep that its stream begins anew; None when time is not told."""
        elapsed = self.architecture.elapsed
        return None if elapsed is None else x[..., elapsed.feature] > elapsed.reset_s  # never where it is missing

    def scaled(self, x: Tensor) -> Tensor:
        """Raw (..., features) -> scaled units, NaN where missing."""
        scaled = (x - self.mean) / self.std
        elapsed = self.architecture.elapsed
        if elapsed is None:
            return scaled
        # Steps range over decades, so their logarithm is told; 0, which a fresh stream holds, is the usual step.
        steps = logarithm((x[..., elapsed.feature].clamp(min=0.0) / elapsed.usual_s + 1.0) / 2.0)
        own = torch.arange(x.shape[-1], device=x.device) == elapsed.feature
        return torch.where(own, steps.unsqueeze(-1), scaled)

    def _told(self, seen: Tensor, last: Tensor, missing: Tensor) -> Tensor:
        """What the first layer is told: (..., inputs)."""
        parts = [seen]
        if self.architecture.changes:
            parts.append(((seen - last) / self.pace).clamp(-LEAP, LEAP))
        if self.architecture.missing == "mask":
            parts.append(missing.to(seen.dtype))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else seen


def build_network(architecture: Architecture, scaler: Scaler, seed: int) -> Network:
    """A network with the starting weights that belong to the seed; leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture, scaler)


def _renewed(state: State, resets: Tensor) -> State:
    """The state, that of a fresh stream where `resets` (batch,) says so."""
    return tuple(part.masked_fill(resets.unsqueeze(-1), 0) for part in state)


def without_monitors(architecture: Architecture) -> Architecture:
    """The part of the architecture that is learned."""
    task = architecture.task
    if isinstance(task, Classify):
        return architecture
    bare = task.model_copy(update={"coverage": None, "alarm_rate": None})
    return architecture.model_copy(update={"task": bare})


def add_monitors(network: Network, architecture: Architecture) -> Network:
    """A network of the architecture with the learned weights of one without monitors; what they know is still blank."""
    # Copies, because a network shares the memory of its scaler.
    mean, std = network.mean.numpy().copy(), network.std.numpy().copy()
    full = Network(architecture, Scaler(mean, std, mean, mean, std, ()))
    # Not strict, because the monitors' buffers are not there; everything else must be.
    keys = full.load_state_dict(network.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(name.startswith("monitors.") for name in keys.missing_keys)
    return full.eval()


def fill_forward(scaled: Tensor, missing: Tensor, last: Tensor) -> Tensor:
    """Replace what is missing by the value before it, and by `last` before the first: (time, batch, features)."""
    held = torch.cat([last.unsqueeze(0), scaled])
    rows = torch.arange(1, len(held), device=scaled.device).view(-1, 1, 1)
    source = torch.where(missing, 0, rows).cummax(dim=0).values  # 0 is `last`
    return held.gather(0, source)
