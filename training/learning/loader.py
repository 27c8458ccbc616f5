"""The batches of an epoch: rows of the series with their targets, and what the network computes of them before its layers.

The scaled values, the level and the links of the head depend on no weight that is trained. So they are computed for many chunks
at once. Those of a small validation part are computed once and kept.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tidegate.training.data.series import Span
from tidegate.training.learning.batches import PADDING, Bools, Plan
from tidegate.training.learning.objective import Objective
from tidegate.training.network.cells import State
from tidegate.training.network.heads import Outputs
from tidegate.training.network.network import LayerInputs, Network

# Rows whose inputs and targets are gathered at once: enough to hide the fixed cost of a gather, few enough to stay in the
# processor's cache.
BLOCK_ROWS = 8192
# Rows whose values, level and links are computed at once. A linear link takes some hundred numbers of each.
LINK_ROWS = 2048

Warm = tuple[tuple[int, dict[str, Tensor]], ...]


@dataclass(frozen=True)
class Batch:
    """One chunk of all batch elements."""

    x: Tensor  # (time, batch, features)
    targets: Tensor  # (time, batch, ...)
    known: float  # how many targets count
    reset: Tensor | None  # (batch,) whether the state is set to zero before the chunk; None where none is
    warm: Warm = ()  # states [1, n] of elements that know the past before the chunk
    inputs: LayerInputs | None = None  # of the layers; None where a gap within the chunk may reset the state

    def run(self, network: Network, state: State) -> tuple[Outputs, State]:
        """The head's outputs in scaled units, and the state after the chunk. With `inputs`, only the states of the layers count."""
        state = begin_sequences(network, state, self.reset, self.warm)
        if self.inputs is None:
            return network.scaled_sequence(self.x, state)
        return network.layer_outputs(self.inputs, state)


class BatchLoader:
    """Makes the batches of plans.

    Args:
        network: what it computes before its layers must not change meanwhile.
        objective: whose targets the batches get.
        values: (time, features) of the series, on the device of the network.
        segments: all of the series. The past of a row goes back to the first row of its segment.
    """

    def __init__(self, network: Network, objective: Objective, values: Tensor, segments: Sequence[Span]) -> None:
        self.network = network
        self.objective = objective
        self.values = values
        self._begins = np.array(sorted(first for first, _ in segments))

    def batches(self, plan: Plan, *, hide: float = 0.0, new_streams: bool = False) -> Iterator[Batch]:
        """The chunks of a plan in order, gathered many at a time.

        Args:
            plan: the rows of each chunk.
            hide: the share of the values that are made missing.
            new_streams: whether a sequence that counts from its first row knows nothing of the rows before it.
        """
        state = self.network.initial_state(plan.batch_size)
        # Elapsed time may reset the state within a chunk, and then the network takes a chunk as a whole.
        whole = self.network.architecture.elapsed is not None
        longest = 1 if whole else max(LINK_ROWS // (plan.chunk * plan.batch_size), 1)
        chunks = max(BLOCK_ROWS // (plan.chunk * plan.batch_size), 1)
        for first in range(0, plan.chunks, chunks):
            part = slice(first, first + chunks)
            rows = torch.from_numpy(plan.rows(part)).to(self.values.device)  # (chunks, time, batch)
            padding = rows == PADDING
            rows.clamp_(min=0)
            x = self.values.index_select(0, rows.flatten()).view(*rows.shape, -1)
            if hide:
                _drop_values(x, hide)
            if plan.length[part].min() < plan.chunk:
                x[padding] = math.nan
            targets = self.objective.targets_of(rows, torch.from_numpy(plan.loss_mask(part)).to(self.values.device))
            known = self.objective.count_known(targets).tolist()
            for low, high in _runs(plan.reset[part], longest):
                reset: Tensor | None = None
                warm: Warm = ()
                if plan.reset[first + low].any():
                    reset = torch.from_numpy(plan.reset[first + low]).to(self.values.device)
                    warm = self._warm_states(plan, first + low, new_streams=new_streams)
                if whole:
                    yield Batch(x[low], targets[low], known[low], reset, warm)
                    continue
                with torch.no_grad():
                    state = begin_sequences(self.network, state, reset, warm)
                    inputs, state = self.network.layer_inputs(x[low:high].flatten(0, 1), state)
                for index, piece in enumerate(inputs.split(plan.chunk), low):
                    yield Batch(x[index], targets[index], known[index], reset if index == low else None, inputs=piece)

    def _warm_states(self, plan: Plan, chunk: int, *, new_streams: bool) -> Warm:
        """The states that hold past values alone, of the elements where a sequence begins in the chunk.

        A training sequence is a small piece of a stream that has run for long, and its window is full. In the validation part
        a window goes on from the training part.
        """
        if self.network.memory == 0:
            return ()
        warm = plan.reset[chunk] & (plan.first[chunk] > 0)
        if new_streams:
            warm &= plan.burn_in[chunk] > 0
        states = []
        for element in np.flatnonzero(warm).tolist():
            row = int(plan.first[chunk, element])
            begin = max(
                int(self._begins[np.searchsorted(self._begins, row, side="right") - 1]), row - self.network.memory
            )
            if begin < row:
                states.append((element, self.network.warm(self.values[begin:row])))
        return tuple(states)


def begin_sequences(network: Network, state: State, reset: Tensor | None, warm: Warm) -> State:
    """The state before a chunk: zero where a sequence begins, except for past values that are known."""
    if reset is None:
        return state
    # The batch is the last axis but one of every part.
    state = tuple(part.masked_fill(reset[:, None], 0.0) for part in state)
    parts = dict(zip(network.state_names, state, strict=True))
    for element, known in warm:
        for name, part in known.items():
            parts[name][element] = part[0]  # a copy already, for the reset has made one
    return tuple(parts.values())


def _runs(reset: Bools, longest: int) -> Iterator[tuple[int, int]]:
    """Cut the chunks into runs (first, end) of up to `longest` chunks. A sequence begins only in the first chunk of a run."""
    heads = np.flatnonzero(reset.any(axis=1)).tolist()
    for low, high in pairwise(sorted({0, *heads, len(reset)})):
        for first in range(low, high, longest):
            yield first, min(first + longest, high)


def _drop_values(x: Tensor, share: float) -> None:
    """Make single values of (chunks, time, batch, features) missing, and whole sensors for a chunk.

    Without this, a network that has never seen a missing value keeps random weights at the inputs of the mask.
    """
    dropped = torch.rand((len(x), 1, *x.shape[2:]), device=x.device) < share
    x.masked_fill_(dropped, math.nan)
    # Most values stay, so positions are drawn, not a number for each value. A position drawn twice is dropped once; the
    # number of draws makes up for it.
    draws = round(-math.log1p(-share) * x.numel())
    x.view(-1)[torch.randint(x.numel(), (draws,), device=x.device)] = math.nan
