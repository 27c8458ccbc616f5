"""A logarithm for the exported graph, whose bits do not depend on the batch."""

import torch
from torch import Tensor


def logarithm(x: Tensor) -> Tensor:
    """The natural logarithm, within a fortieth from 0.5 to 5000; rising everywhere, but never above 32.

    Of roots and quotients, which round alike wherever a row stands in a batch; with onnxruntime's Log a prediction would
    change its last bits with the rows beside it.
    """
    for _ in range(4):
        x = torch.sqrt(x)
    return 32.0 * (x - 1.0) / (x + 1.0)
