"""A logarithm for the exported graph. Its bits do not depend on the batch."""

import torch
from torch import Tensor


def logarithm(x: Tensor) -> Tensor:
    """The natural logarithm, within a fortieth from 0.5 to 5000. It rises everywhere, but never above 32.

    Roots and quotients round alike at every position in a batch. With onnxruntime's Log the last bits of a prediction would
    depend on the rows beside it.
    """
    for _ in range(4):
        x = torch.sqrt(x)
    return 32.0 * (x - 1.0) / (x + 1.0)
