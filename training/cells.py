"""Recurrent layers. Each computes the same in two ways: `sequence()` to train, `step()` to export and to serve.

Under export a layer is one fused ONNX node; its weights are buffers in ONNX's layout, prepared beforehand, so that no
slicing of weights is left in the graph. To add a cell, write such a class and enter it in `CELLS`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class Cell(nn.Module, ABC):
    """What a network asks of a recurrent layer.

    `states` names its state tensors, each [1, batch, hidden] and zero in a fresh stream.
    """

    states: ClassVar[tuple[str, ...]]

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden

    def fresh_state(self, batch: int) -> State:
        """Zeros, [1, batch, hidden] for each of `states`."""
        return tuple(torch.zeros(1, batch, self.hidden) for _ in self.states)

    @abstractmethod
    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and the state after the last timestep."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next state."""

    @abstractmethod
    def prepare_export(self) -> None:
        """Lay the weights out as ONNX wants them; to be called again when they have changed."""


class LSTM(Cell):
    """A long short-term memory layer with the states h and c."""

    states = ("h", "c")
    onnx_w: Tensor  # (1, 4 * hidden, inputs)
    onnx_r: Tensor  # (1, 4 * hidden, hidden)
    onnx_b: Tensor  # (1, 8 * hidden), those of the inputs before the recurrent ones

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.kernel = nn.LSTM(inputs, hidden)
        _open_forget_gates(self.kernel)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and (h, c) after the last timestep."""
        h, c = state
        y, (h, c) = self.kernel(x, (h, c))
        return y, (h, c)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h, c)."""
        if not torch.onnx.is_in_onnx_export():
            y, state = self.sequence(x.unsqueeze(0), state)
            return y.squeeze(0), state
        h, c = state
        size = [1, x.shape[0], self.hidden]
        # The first output is h of all timesteps; with one timestep it says the same as the second.
        _, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (x.unsqueeze(0), self.onnx_w, self.onnx_r, self.onnx_b, None, h, c),
            {"hidden_size": self.hidden, "direction": "forward"},
            dtypes=(torch.float32, torch.float32, torch.float32),
            shapes=([1, *size], size, size),
            version=14,
        )
        return h.squeeze(0), (h, c)

    def prepare_export(self) -> None:
        """Put the weights into buffers in ONNX's layout; they are not part of what is saved."""
        w, r, input_bias, recurrent_bias = (_onnx_gates(weight.detach()) for weight in self.kernel.all_weights[0])
        self.register_buffer("onnx_w", w.unsqueeze(0), persistent=False)
        self.register_buffer("onnx_r", r.unsqueeze(0), persistent=False)
        self.register_buffer("onnx_b", torch.cat([input_bias, recurrent_bias]).unsqueeze(0), persistent=False)


CELLS: dict[str, type[Cell]] = {"lstm": LSTM}


def _onnx_gates(weights: Tensor) -> Tensor:
    """From torch's gate order i, f, g, o along the first axis to ONNX's i, o, f, c, where c is what torch calls g."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, o, f, g])


def _open_forget_gates(kernel: nn.LSTM) -> None:
    """Begin with a bias of 1 at the forget gates: a new layer then remembers, and gradients reach back."""
    _, _, input_bias, recurrent_bias = kernel.all_weights[0]
    with torch.no_grad():
        for bias, value in ((input_bias, 1.0), (recurrent_bias, 0.0)):
            bias.chunk(4)[1].fill_(value)
