"""The activations of candidate and output: value, derivative, and name in the ONNX operators.

The derivative is computed from the output alone, so that a sequence keeps one tensor for each activation, not two.

If elu is a node of its own (rnn, peephole-previous), the width should be a multiple of 4. Otherwise onnxruntime may give a
row other bits alone than in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """An element-wise function.

    `slope(y)` is the derivative where the value is `y`. `onnx` is the name in the attribute `activations`; `alpha` is empty
    if the operator takes none.
    """

    onnx: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    alpha: tuple[float, ...] = ()


# The defaults of the ONNX operators of the same names.
LEAK = 0.01
ELU = 1.0

ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation("Tanh", torch.tanh, lambda y: 1 - y * y),
    "relu": Activation("Relu", torch.relu, lambda y: (y > 0).to(y.dtype)),
    "sigmoid": Activation("Sigmoid", torch.sigmoid, lambda y: y * (1 - y)),
    "softsign": Activation("Softsign", functional.softsign, lambda y: (1 - y.abs()) ** 2),
    "elu": Activation("Elu", lambda x: functional.elu(x, ELU), lambda y: (y + ELU).where(y <= 0, 1.0), alpha=(ELU,)),
    "leaky-relu": Activation(
        "LeakyRelu",
        lambda x: functional.leaky_relu(x, LEAK),
        lambda y: torch.full_like(y, LEAK).where(y <= 0, 1.0),
        alpha=(LEAK,),
    ),
}
