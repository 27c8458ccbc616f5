"""The plain recurrent layer of Elman: no gates, so it forgets soon; cheap, and a yardstick for the others."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tidegate.training.network.cells.activation import ACTIVATIONS, Activation
from tidegate.training.network.cells.cell import Cell, State

# What torch's own layer can do.
NATIVE = ("tanh", "relu")


class RNN(Cell):
    """A plain recurrent layer with the state h: one activation of inputs and h. With tanh and relu it is torch's own.

    A step is exported as a Gemm and the activation, not as ONNX's RNN. With the operator, onnxruntime gives a row other
    bits alone than in a batch, and takes four times as long for 64 rows of 64 units.
    """

    states = ("h",)
    onnx_w: Tensor  # (hidden, inputs + hidden)
    onnx_b: Tensor  # (hidden,)

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__(inputs, hidden, activation)
        self.kernel = nn.RNN(inputs, hidden, nonlinearity=activation if activation in NATIVE else "tanh")

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and (h,) after the last timestep."""
        (h,) = state
        if self.activation in NATIVE:
            y, h = self.kernel(x, h)
            return y, (h,)
        w, r, input_bias, recurrent_bias = self.kernel.all_weights[0]
        projected = functional.linear(x, w, input_bias + recurrent_bias)
        y, h = _RNNSequence.apply(projected, r, h, ACTIVATIONS[self.activation])  # type: ignore[no-untyped-call]
        return y, (h,)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h,), by one Gemm."""
        inputs = torch.cat([x, state[0].squeeze(0)], -1)
        h = ACTIVATIONS[self.activation].value(functional.linear(inputs, self.onnx_w, self.onnx_b))
        return h, (h.unsqueeze(0),)

    def prepare_export(self) -> None:
        """Put the weights of inputs and h side by side."""
        w, r, input_bias, recurrent_bias = self.kernel.all_weights[0]
        self.register_onnx(onnx_w=torch.cat([w, r], 1), onnx_b=input_bias + recurrent_bias)


class _RNNSequence(torch.autograd.Function):
    """A plain recurrent layer over a sequence, and its gradient, which needs only the outputs.

    Takes (time, batch, hidden), inputs times weights plus biases, the recurrent weights (hidden, hidden), h and the
    activation; returns (time, batch, hidden) and the last h.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, r: Tensor, h: Tensor, activation_fn: Activation) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(projected)
        before = h[0]
        transposed = r.t().contiguous()  # read by every timestep
        for x, out in zip(projected.unbind(0), y.unbind(0), strict=True):
            before = out.copy_(activation_fn.value(torch.addmm(x, before, transposed)))
        ctx.save_for_backward(r, h, y)
        ctx.activation_fn = activation_fn
        return y, y[-1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor) -> tuple[Tensor | None, ...]:
        r, h, y = ctx.saved_tensors
        # (1 + time, batch, hidden): the gradient of h before each timestep, and last that of the final h
        dh = torch.cat([torch.zeros_like(h), dy])
        dh[-1:] += dh_last
        dx = ctx.activation_fn.slope(y)
        rows = list(zip(dh[:-1].unbind(0), dh[1:].unbind(0), dx.unbind(0), strict=True))
        for earlier, later, row in reversed(rows):
            earlier.addmm_(row.mul_(later), r)
        before = torch.cat([h, y[:-1]])  # (time, batch, hidden), h before each timestep
        return dx, dx.flatten(0, 1).t() @ before.flatten(0, 1), dh[:1], None
