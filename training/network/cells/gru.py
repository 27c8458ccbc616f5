"""Gated recurrent units, with the reset gate after the recurrent weights as torch and ONNX (linear_before_reset) have it."""

from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tidegate.training.network.cells.activation import ACTIVATIONS, Activation
from tidegate.training.network.cells.cell import Cell, State, chrono_biases, fused_step, onnx_activations


class GRU(Cell):
    """A gated recurrent unit with the state h.

    With tanh it is torch's own. Another activation applies to the candidate; the gates stay sigmoids.
    """

    states = ("h",)
    onnx_w: Tensor  # (1, 3 * hidden, inputs)
    onnx_r: Tensor  # (1, 3 * hidden, hidden)
    onnx_b: Tensor  # (1, 6 * hidden), those of the inputs before the recurrent ones

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__(inputs, hidden, activation)
        self.kernel = nn.GRU(inputs, hidden)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and (h,) after the last timestep."""
        (h,) = state
        if self.activation == "tanh":
            y, h = self.kernel(x, h)
            return y, (h,)
        w, r, input_bias, recurrent_bias = self.kernel.all_weights[0]
        y, h = _gru_sequence(functional.linear(x, w, input_bias), r, recurrent_bias, h, ACTIVATIONS[self.activation])
        return y, (h,)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next (h,), by one node."""
        attributes = {} if self.activation == "tanh" else onnx_activations(["sigmoid", self.activation])
        weights = (self.onnx_w, self.onnx_r, self.onnx_b)
        return fused_step("GRU", x, weights, state, attributes={"linear_before_reset": 1, **attributes})

    def init_long_memory(self, steps: int) -> None:
        """Initialise the update gates to hold for up to `steps` timesteps."""
        _, _, input_bias, recurrent_bias = self.kernel.all_weights[0]
        with torch.no_grad():
            input_bias.chunk(3)[1].copy_(chrono_biases(self.hidden, steps))
            recurrent_bias.chunk(3)[1].zero_()

    def prepare_export(self) -> None:
        """Put the weights into ONNX's layout."""
        w, r, input_bias, recurrent_bias = map(_onnx_gates, self.kernel.all_weights[0])
        self.register_onnx(
            onnx_w=w.unsqueeze(0), onnx_r=r.unsqueeze(0), onnx_b=torch.cat([input_bias, recurrent_bias]).unsqueeze(0)
        )


def _onnx_gates(weights: Tensor) -> Tensor:
    """From torch's gate order r, z, n along the first axis to ONNX's z, r, h, where h is what torch calls n."""
    r, z, n = weights.chunk(3)
    return torch.cat([z, r, n])


def _gru_sequence(
    projected: Tensor, r: Tensor, bias: Tensor, h: Tensor, activation_fn: Activation
) -> tuple[Tensor, Tensor]:
    """Run a gated recurrent unit over a sequence, as `lstm_sequence` does for an LSTM.

    Args:
        projected: (time, batch, 3 * hidden), inputs times weights plus their bias; gates r, z, n.
        r: (3 * hidden, hidden), the recurrent weights.
        bias: (3 * hidden,), of the recurrent weights.
        h: [1, batch, hidden].
        activation_fn: of the candidate n.

    Returns:
        (time, batch, hidden), and h after the last timestep. Can be differentiated once.

    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in (projected, r, bias, h)):
        y, h = _GRUSequence.apply(projected, r, bias, h, activation_fn)  # type: ignore[no-untyped-call]
        return y, h
    y, _, _ = _run(projected, r, bias, h[0], activation_fn, keep=False)
    return y, y[-1:].clone()


class _GRUSequence(torch.autograd.Function):
    """`_gru_sequence` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, r: Tensor, bias: Tensor, h: Tensor, activation_fn: Activation
    ) -> tuple[Tensor, Tensor]:
        y, gates, candidates = _run(projected, r, bias, h[0], activation_fn, keep=True)
        ctx.save_for_backward(r, h, y, gates, candidates)
        ctx.activation_fn = activation_fn
        return y, y[-1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor) -> tuple[Tensor | None, ...]:
        r, h, y, gates, candidates = ctx.saved_tensors
        before = torch.cat([h, y[:-1]])  # (time, batch, hidden), h before each timestep
        slopes, kept = _slopes(before, gates, candidates, ctx.activation_fn)
        # (1 + time, batch, hidden): the gradient of h before each timestep, and last that of the final h
        dh = torch.cat([torch.zeros_like(h), dy])
        dh[-1:] += dh_last
        recurrent = slopes[:, :, :3].flatten(2)  # (time, batch, 3 * hidden), a view
        into = zip(
            dh[:-1].unbind(0), dh[1:].unbind(0), slopes.unbind(0), kept.unbind(0), recurrent.unbind(0), strict=True
        )
        for earlier, later, slope, along, row in reversed(list(into)):
            slope.mul_(later.unsqueeze(1))
            earlier.addcmul_(along, later).addmm_(row, r)
        flat = recurrent.flatten(0, 1)
        projected = torch.cat([slopes[:, :, :2], slopes[:, :, 3:]], 2).flatten(2)
        return projected, flat.t() @ before.flatten(0, 1), flat.sum(0), dh[:1], None


def _run(
    projected: Tensor, r: Tensor, bias: Tensor, h: Tensor, activation_fn: Activation, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The timesteps one after the other.

    Returns:
        y, (time, batch, hidden); the gates r, z after their activations and the recurrent part of the candidate before r,
        (time, batch, 3, hidden); and the candidates, (time, batch, hidden). With `keep` they are those of each timestep, else
        of the last.

    """
    steps, batch, width = projected.shape
    hidden = width // 3
    kept = steps if keep else 1
    y = projected.new_empty(steps, batch, hidden)
    gates = projected.new_empty(kept, batch, 3, hidden)
    candidates = projected.new_empty(kept, batch, hidden)
    r = r.t().contiguous()  # (hidden, 3 * hidden); read by every timestep
    for x, out, gate, n in zip(
        projected.unbind(0),
        y.unbind(0),
        gates.unbind(0) if keep else repeat(gates[0]),
        candidates.unbind(0) if keep else repeat(candidates[0]),
        strict=False,  # without `keep` a view repeats for ever
    ):
        torch.addmm(bias, h, r, out=gate.view(batch, width))
        gate[:, :2].add_(x[:, : 2 * hidden].view(batch, 2, hidden)).sigmoid_()
        reset, update, let_through = gate.unbind(1)
        torch.addcmul(x[:, 2 * hidden :], reset, let_through, out=n)
        n.copy_(activation_fn.value(n))
        torch.lerp(n, h, update, out=out)
        h = out
    return y, gates, candidates


def _slopes(before: Tensor, gates: Tensor, candidates: Tensor, activation_fn: Activation) -> tuple[Tensor, Tensor]:
    """The factors of the gradient of h in the backward pass, for all timesteps at once.

    Returns:
        (time, batch, 4, hidden): to r and z before their activations, to the recurrent part of n, to n before its activation;
        (time, batch, hidden): to the previous h.

    """
    r, z, let_through = gates.unbind(2)
    to_n = activation_fn.slope(candidates).mul_(1 - z)
    to_r = to_n * let_through * r * (1 - r)
    to_z = (before - candidates) * z * (1 - z)
    return torch.stack([to_r, to_z, to_n * r, to_n], 2), z
