"""Long short-term memory layers: the plain one, and two with peepholes, whose gates see the cell state."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tidegate.training.network.cells.activation import ACTIVATIONS
from tidegate.training.network.cells.cell import Cell, State, chrono_biases, fused_step, onnx_activations
from tidegate.training.network.cells.lstm_sequence import lstm_sequence


class LSTM(Cell):
    """A long short-term memory layer with the states h and c.

    With tanh it is torch's own, and as fast. Another activation applies to the candidate and the cell state; the gates stay
    sigmoids.
    """

    states = ("h", "c")
    onnx_w: Tensor  # (1, 4 * hidden, inputs)
    onnx_r: Tensor  # (1, 4 * hidden, hidden)
    onnx_b: Tensor  # (1, 8 * hidden), those of the inputs before the recurrent ones

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__(inputs, hidden, activation)
        self.kernel = nn.LSTM(inputs, hidden)
        _init_forget_bias(self.kernel)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and (h, c) after the last timestep."""
        h, c = state
        if self.activation != "tanh":
            return self._manual_sequence(x, h, c)
        y, (h, c) = self.kernel(x, (h, c))
        return y, (h, c)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h, c), by one node."""
        return fused_step("LSTM", x, (self.onnx_w, self.onnx_r, self.onnx_b), state, attributes=self._attributes())

    def prepare_export(self) -> None:
        """Put the weights into ONNX's layout."""
        w, r, input_bias, recurrent_bias = map(_onnx_gates, self.kernel.all_weights[0])
        self.register_onnx(
            onnx_w=w.unsqueeze(0), onnx_r=r.unsqueeze(0), onnx_b=torch.cat([input_bias, recurrent_bias]).unsqueeze(0)
        )

    def init_long_memory(self, steps: int) -> None:
        """Initialise the forget gates to hold for up to `steps` timesteps, and the input gates to admit as little."""
        _, _, input_bias, recurrent_bias = self.kernel.all_weights[0]
        bias = chrono_biases(self.hidden, steps)
        with torch.no_grad():
            for gate, value in ((0, -bias), (1, bias)):
                input_bias.chunk(4)[gate].copy_(value)
                recurrent_bias.chunk(4)[gate].zero_()

    def _manual_sequence(
        self, x: Tensor, h: Tensor, c: Tensor, p: Tensor | None = None, *, o_sees_previous: bool = False
    ) -> tuple[Tensor, State]:
        """`sequence()` with this layer's activation, and with peepholes if there are any, (3, hidden) for i, f, o."""
        w, r, input_bias, recurrent_bias = self.kernel.all_weights[0]
        projected = functional.linear(x, w, input_bias + recurrent_bias)
        activation_fn = ACTIVATIONS[self.activation]
        y, h, c = lstm_sequence(projected, r, p, h, c, activation_fn, o_sees_previous=o_sees_previous)
        return y, (h, c)

    def _attributes(self) -> dict[str, object]:
        if self.activation == "tanh":
            return {}
        return onnx_activations(["sigmoid", self.activation, self.activation])


class Peephole(LSTM):
    """An LSTM whose gates see the cell state through one weight a unit: i and f the previous one, o the new one.

    It is the ONNX operator with its input P. The weights of the peepholes start at zero, so it starts as the plain LSTM.
    """

    o_sees_previous: ClassVar[bool] = False
    onnx_p: Tensor  # (1, 3 * hidden)

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__(inputs, hidden, activation)
        # One axis, as a bias has, so that weight decay does not apply. The order is i, f, o.
        self.peepholes = nn.Parameter(torch.zeros(3 * hidden))

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and (h, c) after the last timestep."""
        h, c = state
        return self._manual_sequence(x, h, c, self.peepholes.view(3, self.hidden), o_sees_previous=self.o_sees_previous)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h, c), by one node."""
        weights = (self.onnx_w, self.onnx_r, self.onnx_b)
        return fused_step("LSTM", x, weights, state, (self.onnx_p,), self._attributes())

    def prepare_export(self) -> None:
        """Put the weights into ONNX's layout, whose peepholes are in the order i, o, f."""
        super().prepare_export()
        i, f, o = self.peepholes.chunk(3)
        self.register_onnx(onnx_p=torch.cat([i, o, f]).unsqueeze(0))


class PeepholePrevious(Peephole):
    """An LSTM whose gates i, f and o all see the previous cell state through one weight a unit.

    ONNX has no operator for it: in its LSTM, o sees the new cell state. So a step is exported as plain nodes, one Gemm
    among them. The alternative is one node: the previous cell state as more inputs, and the peepholes on the diagonals of
    W. It is slower the wider the layer is, because W gets one more column for each unit.
    """

    o_sees_previous = True
    onnx_w: Tensor  # (4 * hidden, inputs + hidden), gates i, f, o, g
    onnx_b: Tensor  # (4 * hidden,)
    onnx_p: Tensor  # (3 * hidden,)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h, c), by plain nodes."""
        h, c = (part.squeeze(0) for part in state)
        gates = functional.linear(torch.cat([x, h], -1), self.onnx_w, self.onnx_b)
        gate_inputs, g = torch.split(gates, [3 * self.hidden, self.hidden], -1)
        i, f, o = torch.sigmoid(gate_inputs + self.onnx_p * torch.cat([c, c, c], -1)).chunk(3, -1)
        activation_fn = ACTIVATIONS[self.activation].value
        c = f * c + i * activation_fn(g)
        h = o * activation_fn(c)
        return h, (h.unsqueeze(0), c.unsqueeze(0))

    def prepare_export(self) -> None:
        """Put the weights into the order in which the nodes read them."""
        w, r, input_bias, recurrent_bias = map(_candidate_last, self.kernel.all_weights[0])
        self.register_onnx(
            onnx_w=torch.cat([w, r], 1), onnx_b=input_bias + recurrent_bias, onnx_p=self.peepholes.clone()
        )


def _onnx_gates(weights: Tensor) -> Tensor:
    """From torch's gate order i, f, g, o along the first axis to ONNX's i, o, f, c, where c is what torch calls g."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, o, f, g])


def _candidate_last(weights: Tensor) -> Tensor:
    """From torch's gate order i, f, g, o along the first axis to i, f, o, g: the gates are then neighbours."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, f, o, g])


def _init_forget_bias(kernel: nn.LSTM) -> None:
    """Start with a bias of 1 at the forget gates: a new layer then remembers, and gradients reach back."""
    _, _, input_bias, recurrent_bias = kernel.all_weights[0]
    with torch.no_grad():
        for bias, value in ((input_bias, 1.0), (recurrent_bias, 0.0)):
            bias.chunk(4)[1].fill_(value)
