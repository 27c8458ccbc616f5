"""The interface of a recurrent layer, and the one ONNX node of an LSTM or a GRU."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tidegate.training.errors import SettingsError
from tidegate.training.network.cells.activation import ACTIVATIONS

State = tuple[Tensor, ...]


class Cell(nn.Module, ABC):
    """A recurrent layer.

    Args:
        inputs: width of the input.
        hidden: width of the output.
        activation: of candidate and output, one of `activations`.

    Raises:
        SettingsError: the cell does not take that activation.

    """

    # The names of the state tensors. Each is zero in a new stream; the batch is its last axis but one.
    states: ClassVar[tuple[str, ...]]
    activations: ClassVar[frozenset[str]] = frozenset(ACTIVATIONS)

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in self.activations:
            raise SettingsError(
                f"activation: got {activation!r}, expected one of {', '.join(sorted(self.activations))}"
            )
        self.inputs = inputs
        self.hidden = hidden
        self.activation = activation

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep: [1, batch, hidden] each, zeros, like the weights."""
        weight = next(self.parameters())
        return tuple(weight.new_zeros(1, batch, self.hidden) for _ in self.states)

    @abstractmethod
    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(time, batch, inputs) -> (time, batch, hidden) and the state after the last timestep."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(batch, inputs) -> (batch, hidden) and the next state."""
        if torch.onnx.is_in_onnx_export():
            return self.onnx_step(x, state)
        y, state = self.sequence(x.unsqueeze(0), state)
        return y.squeeze(0), state

    @abstractmethod
    def onnx_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`step()` in ONNX operators; only while exporting, and after `prepare_export()`."""

    @abstractmethod
    def prepare_export(self) -> None:
        """Put the weights into ONNX's layout. Call it again after they have changed."""

    def init_long_memory(self, steps: int) -> None:  # noqa: ARG002  only gates can
        """Initialise the gates so that the units hold their state for 1 to `steps` timesteps.

        Chrono initialisation: Tallec & Ollivier, Can recurrent neural networks warp time? (2018). A gate with the bias
        log(n) forgets in some n timesteps, and gradients reach back as far.

        Raises:
            SettingsError: the layer has no gates.
        """
        raise SettingsError(
            f"memory: a layer of kind {type(self).__name__} has no gates that could hold its state; leave it out, or "
            f"take another cell"
        )

    def register_onnx(self, **buffers: Tensor) -> None:
        """Register weights in ONNX's layout as buffers that are not saved."""
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.detach(), persistent=False)


def chrono_biases(units: int, steps: int) -> Tensor:
    """(units,) random biases of gates that hold for 1 to `steps` timesteps: log u, u uniform from 1 to steps - 1."""
    return torch.log1p(torch.rand(units) * (steps - 2))


def fused_step(
    operator: str,
    x: Tensor,
    weights: Sequence[Tensor],
    state: State,
    peepholes: Sequence[Tensor] = (),
    attributes: dict[str, Any] | None = None,
) -> tuple[Tensor, State]:
    """One timestep as one ONNX node, LSTM or GRU: (batch, inputs) -> (batch, hidden) and the next state."""
    size = list(state[0].shape)
    # The first output is h of all timesteps. With one timestep it equals the second.
    _, *next_state = torch.onnx.ops.symbolic_multi_out(
        operator,
        (x.unsqueeze(0), *weights, None, *state, *peepholes),
        {"hidden_size": size[-1], "direction": "forward", **(attributes or {})},
        dtypes=[torch.float32] * (1 + len(state)),
        shapes=[[1, *size], *[size] * len(state)],
        version=14,
    )
    return next_state[0].squeeze(0), tuple(next_state)


def onnx_activations(names: Sequence[str]) -> dict[str, Any]:
    """The attributes of a fused node for activations in the operator's order.

    Only the activations that take an `alpha` consume one, in order. So all are written out.
    """
    chosen = [ACTIVATIONS[name] for name in names]
    attributes = {
        "activations": [activation.onnx for activation in chosen],
        "activation_alpha": [alpha for activation in chosen for alpha in activation.alpha],
    }
    return {name: values for name, values in attributes.items() if values}
