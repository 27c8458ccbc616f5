"""The network, written once: guard -> scaler -> level -> convolution -> cells -> head -> monitors.

`sequence()` trains it. `step()` is what is exported.

The network takes and returns raw units. Inside, all values are in scaled units: the distance from the training mean in
training standard deviations. A state of zeros therefore means "every sensor was last at its training mean", and a new
stream needs no special start.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import Floats
from tidegate.training.network.alarm import Alarm
from tidegate.training.network.cells import CELLS, Cell, Convolution, State
from tidegate.training.network.heads import ForecastHead, Outputs, build_head
from tidegate.training.network.level import Level
from tidegate.training.network.logarithm import logarithm
from tidegate.training.network.monitors import Intervals, Monitor, Observation
from tidegate.training.network.quantiles import Quantiles
from tidegate.training.settings import Architecture, Classify

# In usual steps of a feature. The first timestep of a stream differs from the training mean and may be hundreds of a slow
# sensor's steps away. The cells must not see such a number.
MAX_CHANGE = 5.0
# In time constants. What a level was before counts by e^-5, less than a hundredth.
LEVEL_MEMORY = 5


@dataclass(frozen=True)
class LayerInputs:
    """What the layers and the head get from a sequence.

    Attributes:
        inputs: (time, batch, inputs) of the first layer.
        links: of the head, each (time, batch, ...), by name.
    """

    inputs: Tensor
    links: Outputs

    def split(self, steps: int) -> "Iterator[LayerInputs]":
        """Views of it, each of up to `steps` timesteps, in order."""
        for first in range(0, len(self.inputs), steps):
            part = slice(first, first + steps)
            yield LayerInputs(self.inputs[part], {name: link[part] for name, link in self.links.items()})


class Network(nn.Module):
    """A recurrent network.

    The state, in order:
        `last` [batch, features]: the last observed value of each feature, in scaled units.
        `level` [batch, 2 * features]: of the running level, if there is one.
        `past` [kernel - 1, batch, inputs]: of the convolution, if there is one.
        The states of each layer, for LSTM `h0`, `c0`, `h1`, ... [1, batch, hidden].
        The states of the head, then those of the monitors.

    The batch is the last axis but one of each tensor. All are zero in a new stream.
    """

    mean: Tensor  # (features,)
    std: Tensor  # (features,)
    pace: Tensor  # (features,), the usual change from one timestep to the next, in scaled units

    def __init__(self, architecture: Architecture, scaler: Scaler) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("std", torch.from_numpy(scaler.std))
        self.register_buffer("pace", torch.from_numpy(scaler.step / scaler.std))
        self.level = Level(architecture.features, architecture.level_steps) if architecture.level_steps else None
        # Each feature, its change, and whether it is missing. The mask tells a fresh value from one that is an hour old.
        # The change makes the movement of a slow sensor visible, which its value hides.
        width = (1 + architecture.changes + (architecture.missing == "mask")) * architecture.features
        self.front = Convolution(width, architecture.filters, architecture.kernel) if architecture.kernel > 1 else None
        widths = [self.front.hidden if self.front else width] + [architecture.hidden] * (architecture.layers - 1)
        cell = CELLS[architecture.cell]
        # The casts say what the lists hold; `nn.ModuleList` does not.
        layers = [cell(width, architecture.hidden, architecture.activation) for width in widths]
        self.cells = cast(list[Cell], nn.ModuleList(layers))
        if architecture.memory is not None:
            for layer in self.cells:
                layer.init_long_memory(architecture.memory)
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = build_head(architecture, width)
        self.monitors = cast(list[Monitor], nn.ModuleList(_monitors(architecture)))

    @property
    def layers(self) -> list[Cell]:
        """The convolution if there is one, then the recurrent layers, in order."""
        return [self.front, *self.cells] if self.front else [*self.cells]

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the state inputs, in order. The output that replaces one is called `<name>_next_trial`."""
        front = (*(self.level.states if self.level else ()), *(self.front.states if self.front else ()))
        cells = (f"{name}{index}" for index, layer in enumerate(self.cells) for name in layer.states)
        monitors = (name for monitor in self.monitors for name in monitor.states)
        return ("last", *front, *cells, *self.head.states, *monitors)

    @property
    def monitor_states(self) -> int:
        """How many state tensors belong to the monitors; they are the last."""
        return sum(len(monitor.states) for monitor in self.monitors)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in order."""
        return (*self.head.outputs, *(name for monitor in self.monitors for name in monitor.outputs))

    def unit(self, output: str) -> Floats:
        """The unit of a difference in an output: the target's standard deviation, or 1. Broadcasts over the output."""
        source = next((monitor for monitor in self.monitors if output in monitor.outputs), self.head)
        return source.unit(output, self.std).cpu().numpy()

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        last = torch.zeros(batch, self.architecture.features, device=self.mean.device)
        layers = (part for layer in self.layers for part in layer.initial_state(batch))
        monitors = (part for monitor in self.monitors for part in monitor.initial_state(batch))
        level = self.level.initial_state(batch) if self.level else ()
        return (last, *level, *layers, *self.head.initial_state(batch), *monitors)

    def sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """(time, batch, features) in raw units -> the served outputs (time, batch, ...) and the last state."""
        head_outputs, next_state = self.scaled_sequence(x, state)
        outputs = self.head.raw(head_outputs, self.mean, self.std)
        if not len(self.monitors):
            return outputs, next_state
        core = len(next_state) - self.monitor_states
        last, monitor_state, steps = state[0], state[core:], []
        for row, values in enumerate(x):
            resets = self._resets(values)
            if resets is not None:
                last, *monitor_parts = _reset_rows((last, *monitor_state), resets)
                monitor_state = tuple(monitor_parts)
            observation = self._observe(values, last)
            now = {name: part[row] for name, part in head_outputs.items()}
            monitor_outputs, monitor_state = self._run_monitors(observation, now, monitor_state)
            last = observation.values
            steps.append(monitor_outputs)
        outputs |= {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
        return outputs, (*next_state[:core], *monitor_state)

    def scaled_sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """The head's outputs in scaled units, which the loss reads. The states of the monitors stay as they are."""
        resets = self._resets(x)
        if resets is None or not resets.any():
            return self._unbroken_sequence(x, state)
        # A state can be replaced only between two calls, so the sequence is cut before each timestep with a reset.
        cuts = torch.nonzero(resets.any(dim=1)).flatten().tolist()
        parts: list[Outputs] = []
        for first, end in pairwise(sorted({0, *cuts, len(x)})):
            outputs, state = self._unbroken_sequence(x[first:end], _reset_rows(state, resets[first]))
            parts.append(outputs)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, state

    def _unbroken_sequence(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        inputs, state = self.layer_inputs(x, state)
        return self.layer_outputs(inputs, state)

    def layer_inputs(self, x: Tensor, state: State) -> tuple[LayerInputs, State]:
        """(time, batch, features) in raw units, with no reset within -> what the layers get, and the next state.

        The states of the layers in it are still those of `state`. Nothing of it depends on a weight that is trained.
        """
        missing = torch.isnan(x)
        values = fill_forward(self.scaled(x), missing, state[0])
        seen, level = values, state[1 : self._layer_parts.start]
        if self.level:
            seen, level = self.level.sequence(values, missing, level)
        inputs = self._cell_inputs(seen, values, torch.cat([state[0].unsqueeze(0), values[:-1]]), missing)
        layers, others = state[self._layer_parts], iter(state[self._layer_parts.stop :])
        links, after = self.head.links(values, missing, tuple(islice(others, len(self.head.states))))
        return LayerInputs(inputs, links), (values[-1], *level, *layers, *after, *others)

    def layer_outputs(self, given: LayerInputs, state: State) -> tuple[Outputs, State]:
        """The head's outputs in scaled units, and `state` with the next states of the layers."""
        y, parts = given.inputs, iter(state[self._layer_parts])
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            layer_state = tuple(islice(parts, len(layer.states)))
            y, after = layer.sequence(y if index == 0 else self.dropout(y), layer_state)
            next_state.extend(after)
        outputs = self.head.combine(self.dropout(y), given.links, given.inputs)
        return outputs, (*state[: self._layer_parts.start], *next_state, *state[self._layer_parts.stop :])

    @property
    def _layer_parts(self) -> slice:
        """Where the states of the layers are in the state."""
        begin = 1 + (len(self.level.states) if self.level else 0)
        return slice(begin, begin + sum(len(layer.states) for layer in self.layers))

    @property
    def memory(self) -> int:
        """The timesteps that `warm` looks back; 0 if there is nothing to warm up but the last value."""
        linear = self.head.linear if isinstance(self.head, ForecastHead) else None
        level = LEVEL_MEMORY * self.architecture.level_steps if self.architecture.level_steps else 0
        return max(level, linear.window if linear else 0)

    def warm(self, history: Tensor) -> dict[str, Tensor]:
        """The states that only hold past values, after a history (time, features) in raw units of one stream: [1, n] by name.

        The others, of the layers and the monitors, need the whole network to run.
        """
        x, zero = history.unsqueeze(1), dict(zip(self.state_names, self.initial_state(1), strict=True))
        missing = torch.isnan(x)
        values = fill_forward(self.scaled(x), missing, zero["last"])
        warmed = {"last": values[-1]}
        if self.level:
            (warmed["level"],) = self.level.advance(values, missing, (zero["level"],))
        linear = self.head.linear if isinstance(self.head, ForecastHead) else None
        if linear:
            (warmed["window"],) = linear.advance(values, missing, (zero["window"],))
        return warmed

    def step(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """(batch, features) in raw units -> the served outputs (batch, ...) and the next state."""
        resets = self._resets(x)
        if resets is not None:
            state = _reset_rows(state, resets)
        observation = self._observe(x, state[0])
        parts = iter(state[1:])
        next_state: list[Tensor] = [observation.values]
        seen = observation.values
        if self.level:
            seen, after = self.level.step(observation.values, observation.missing, (next(parts),))
            next_state.extend(after)
        inputs = y = self._cell_inputs(seen, observation.values, observation.previous, observation.missing)
        for layer in self.layers:
            y, after = layer.step(y, tuple(islice(parts, len(layer.states))))
            next_state.extend(after)
        head_state = tuple(islice(parts, len(self.head.states)))
        head_outputs, after = self.head.step(y, observation.values, observation.missing, inputs, head_state)
        monitor_outputs, monitor_state = self._run_monitors(observation, head_outputs, tuple(parts))
        outputs = self.head.raw(head_outputs, self.mean, self.std) | monitor_outputs
        return outputs, (*next_state, *after, *monitor_state)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`step()` with all tensors in one row: what the exporter traces."""
        outputs, next_state = self.step(x, state)
        return *outputs.values(), *next_state

    def prepare_export(self) -> None:
        """Put the weights into ONNX's layout."""
        for layer in self.layers:
            layer.prepare_export()

    def _observe(self, x: Tensor, last: Tensor) -> Observation:
        """One timestep (batch, features) in scaled units; a missing value repeats the last one."""
        missing = torch.isnan(x)
        return Observation(torch.where(missing, last, self.scaled(x)), last, missing)

    def _run_monitors(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """The served outputs of all monitors for one timestep, and their next states."""
        parts = iter(state)
        outputs: Outputs = {}
        next_state: list[Tensor] = []
        for monitor in self.monitors:
            own, after = monitor.step(observation, head_outputs, tuple(islice(parts, len(monitor.states))))
            outputs |= monitor.raw(own, self.mean, self.std)
            next_state.extend(after)
        return outputs, tuple(next_state)

    def _resets(self, x: Tensor) -> Tensor | None:
        """(...) whether the gap before a timestep is so long that the state is reset; None without elapsed time."""
        elapsed = self.architecture.elapsed
        return None if elapsed is None else x[..., elapsed.feature] > elapsed.reset_s  # never where it is missing

    def scaled(self, x: Tensor) -> Tensor:
        """Raw (..., features) -> scaled units, NaN where missing."""
        scaled = (x - self.mean) / self.std
        elapsed = self.architecture.elapsed
        if elapsed is None:
            return scaled
        # Steps range over decades, so the cells get their logarithm. 0, as in a new stream, is the usual step.
        steps = logarithm((x[..., elapsed.feature].clamp(min=0.0) / elapsed.usual_s + 1.0) / 2.0)
        column = torch.arange(x.shape[-1], device=x.device) == elapsed.feature
        return torch.where(column, steps.unsqueeze(-1), scaled)

    def _cell_inputs(self, seen: Tensor, values: Tensor, previous: Tensor, missing: Tensor) -> Tensor:
        """The inputs of the first layer: (..., inputs). `seen` are the values, or the same relative to their level."""
        parts = [seen]
        if self.architecture.changes:
            parts.append(((values - previous) / self.pace).clamp(-MAX_CHANGE, MAX_CHANGE))
        if self.architecture.missing == "mask":
            parts.append(missing.to(values.dtype))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else seen


def build_monitors(architecture: Architecture) -> list[Monitor]:
    """The monitors that the task asks for; an alarm needs a forecast of the next timestep."""
    task = architecture.task
    if isinstance(task, Classify):
        return []
    monitors: list[Monitor] = []
    if task.coverage is not None:
        monitors.append(Intervals(task, task.coverage))
    if task.alarm_rate is not None:
        monitors.append(Alarm(task, architecture.features, task.alarm_rate))
    return monitors


def build_network(architecture: Architecture, scaler: Scaler, seed: int) -> Network:
    """A network with the initial weights of the seed. torch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture, scaler)


def _monitors(architecture: Architecture) -> list[Monitor]:
    task = architecture.task
    quantiles: list[Monitor] = [Quantiles(task)] if not isinstance(task, Classify) and task.follow else []
    return [*quantiles, *build_monitors(architecture)]


def _reset_rows(state: State, resets: Tensor) -> State:
    """The state, zero in the rows where `resets` (batch,) is true."""
    return tuple(part.masked_fill(resets.unsqueeze(-1), 0) for part in state)


def without_monitors(architecture: Architecture) -> Architecture:
    """The part of the architecture that is trained."""
    task = architecture.task
    if isinstance(task, Classify):
        return architecture
    bare = task.model_copy(update={"coverage": None, "alarm_rate": None, "alarm_times": None, "follow": False})
    return architecture.model_copy(update={"task": bare})


def add_monitors(network: Network, architecture: Architecture) -> Network:
    """A network of the architecture with the trained weights of one without monitors. The monitors are not calibrated."""
    # Copies, because a network shares the memory of its scaler.
    mean, std = network.mean.numpy().copy(), network.std.numpy().copy()
    full = Network(architecture, Scaler(mean, std, mean, mean, std, ()))
    # Not strict, because the monitors' buffers are not there; everything else must be.
    keys = full.load_state_dict(network.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(name.startswith("monitors.") for name in keys.missing_keys)
    return full.eval()


def fill_forward(scaled: Tensor, missing: Tensor, last: Tensor) -> Tensor:
    """Replace each missing value by the value before it, and by `last` before the first: (time, batch, features)."""
    filled = torch.cat([last.unsqueeze(0), scaled])
    rows = torch.arange(1, len(filled), device=scaled.device).view(-1, 1, 1)
    source = torch.where(missing, 0, rows).cummax(dim=0).values  # 0 is `last`
    return filled.gather(0, source)
