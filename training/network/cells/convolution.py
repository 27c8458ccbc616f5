"""A causal convolution over time in front of the cells: it learns patterns of a few neighbouring timesteps."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from tidegate.training.errors import SettingsError
from tidegate.training.network.cells.cell import Cell, State


class Convolution(Cell):
    """A one-dimensional convolution over the present and the `kernel - 1` timesteps before it, with a ReLU.

    Its state `past` [kernel - 1, batch, inputs] holds those timesteps, the oldest first. The zeros of a new stream are the
    padding. `hidden`, the width of the output, is the number of filters.

    Args:
        inputs: width of the input.
        filters: width of the output.
        kernel: how many timesteps a filter sees, 2 or more.

    Raises:
        SettingsError: the kernel sees the present timestep alone.

    """

    states = ("past",)
    activations = frozenset({"relu"})
    onnx_w: Tensor  # (filters, kernel * inputs)

    def __init__(self, inputs: int, filters: int, kernel: int) -> None:
        super().__init__(inputs, filters, "relu")
        if kernel < 2:
            raise SettingsError(
                f"kernel: got {kernel}, expected at least 2 timesteps, else there is nothing to convolve over; "
                "leave the convolution out"
            )
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(filters, inputs, kernel))
        self.bias = nn.Parameter(torch.empty(filters))
        bound = 1 / sqrt(inputs * kernel)  # as torch's own convolutions begin
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep: zeros, like the weights."""
        return (self.weight.new_zeros(self.kernel - 1, batch, self.inputs),)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, filters) and the last kernel - 1 timesteps."""
        padded = torch.cat([*state, x])  # (kernel - 1 + time, batch, inputs)
        y = functional.conv1d(padded.permute(1, 2, 0), self.weight, self.bias)  # (batch, filters, time)
        # A copy: a view would keep the whole sequence in memory for the sake of its last timesteps.
        return functional.relu(y.permute(2, 0, 1)), (padded[-(self.kernel - 1) :].clone(),)

    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, filters) and the next past, by one Gemm over the window."""
        window = torch.cat([*state, x.unsqueeze(0)])  # (kernel, batch, inputs)
        flat = window.transpose(0, 1).reshape(-1, self.kernel * self.inputs)
        return functional.relu(functional.linear(flat, self.onnx_w, self.bias)), (window[1:],)

    def prepare_export(self) -> None:
        """Put the weights into the order of the window: timestep by timestep."""
        self.register_onnx(onnx_w=self.weight.transpose(1, 2).flatten(1))
