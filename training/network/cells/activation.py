"""The activations of candidate and output: what each computes, its slope, and what the ONNX operators call it.

A slope is told from the output alone, so that a sequence keeps one tensor for each activation and not two.

Where elu or softplus is a node of its own (rnn, peephole-previous), the width should be a multiple of 4: else onnxruntime
may give a row other bits alone than in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """A function of one number, applied to every element.

    `slope(y)` is the derivative where the value is `y`. `onnx` is the name in the attribute `activations`; `alpha` and
    `beta` are empty where the operator takes none.
    """

    onnx: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()


# ONNX's defaults, of the operators of the same names.
LEAK = 0.01
ELU = 1.0
THRESHOLD = 1.0
HARD_SLOPE, HARD_OFFSET = 0.2, 0.5  # torch's hardsigmoid has a slope of 1/6, so it is not used
# ONNX names no defaults for these two. Affine: the identity, which makes a linear unit.
AFFINE_SLOPE, AFFINE_OFFSET = 1.0, 0.0
# LeCun et al., Efficient BackProp (1998), 4.4: the tanh that maps 1 to 1 and keeps a variance of 1.
TANH_HEIGHT, TANH_SLOPE = 1.7159, 2.0 / 3.0

ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation("Tanh", torch.tanh, lambda y: 1 - y * y),
    "relu": Activation("Relu", torch.relu, lambda y: (y > 0).to(y.dtype)),
    "sigmoid": Activation("Sigmoid", torch.sigmoid, lambda y: y * (1 - y)),
    "softsign": Activation("Softsign", functional.softsign, lambda y: (1 - y.abs()) ** 2),
    "softplus": Activation("Softplus", functional.softplus, lambda y: -torch.expm1(-y)),
    "elu": Activation(
        "Elu",
        lambda x: functional.elu(x, ELU),
        lambda y: (y + ELU).where(y <= 0, 1.0),
        alpha=(ELU,),
    ),
    "leaky-relu": Activation(
        "LeakyRelu",
        lambda x: functional.leaky_relu(x, LEAK),
        lambda y: torch.full_like(y, LEAK).where(y <= 0, 1.0),
        alpha=(LEAK,),
    ),
    "hard-sigmoid": Activation(
        "HardSigmoid",
        lambda x: torch.clamp(HARD_SLOPE * x + HARD_OFFSET, 0, 1),
        lambda y: HARD_SLOPE * ((y > 0) & (y < 1)).to(y.dtype),
        alpha=(HARD_SLOPE,),
        beta=(HARD_OFFSET,),
    ),
    "thresholded-relu": Activation(
        "ThresholdedRelu",
        lambda x: functional.threshold(x, THRESHOLD, 0.0),
        lambda y: (y > 0).to(y.dtype),
        alpha=(THRESHOLD,),
    ),
    "scaled-tanh": Activation(
        "ScaledTanh",
        lambda x: TANH_HEIGHT * torch.tanh(TANH_SLOPE * x),
        lambda y: TANH_SLOPE * (TANH_HEIGHT - y * y / TANH_HEIGHT),
        alpha=(TANH_HEIGHT,),
        beta=(TANH_SLOPE,),
    ),
    "affine": Activation(
        "Affine",
        lambda x: AFFINE_SLOPE * x + AFFINE_OFFSET,
        lambda y: torch.full_like(y, AFFINE_SLOPE),
        alpha=(AFFINE_SLOPE,),
        beta=(AFFINE_OFFSET,),
    ),
}
