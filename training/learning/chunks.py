"""A replay of a network over known rows, with the state carried as in serving: what its monitors will see."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tidegate.training.data.series import Series, Spans
from tidegate.training.network.network import Network, fill_forward

# Timesteps of one call of the network: enough to be fast, few enough to be small.
CHUNK = 4096


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a replay: the filled values (rows, features) and the head's outputs (rows, ...), both scaled."""

    new_stream: bool  # whether a stream begins with the first row
    previous: Tensor  # (features,) the values before the first row
    values: Tensor
    missing: Tensor
    head_outputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.values)


def replay_chunks(network: Network, series: Series, spans: Spans) -> Iterator[Chunk]:
    """Replay the rows of the spans, with the state carried through each segment."""
    for start, stop in series.segments(spans):
        state = network.initial_state(1)
        for first in range(start, stop, CHUNK):
            x = torch.from_numpy(series.values[first : min(first + CHUNK, stop)]).unsqueeze(1)
            previous, missing = state[0], torch.isnan(x)
            head_outputs, state = network.scaled_sequence(x, state)
            values = fill_forward(network.scaled(x), missing, previous)
            yield Chunk(
                first == start,
                previous[0],
                values[:, 0],
                missing[:, 0],
                {name: part[:, 0] for name, part in head_outputs.items()},
            )
