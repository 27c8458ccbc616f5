"""The optimizer, and the weights that decay."""

import torch

from tidegate.training.network.network import Network
from tidegate.training.settings import Fit


def build_optimizer(network: Network, settings: Fit) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD, one kernel for each step.

    Weight decay applies to matrices, not to biases and the link shares of the head. AdamW decays the weights themselves
    (Loshchilov and Hutter, 2019). The others add the weights to the gradient, the classic L2 penalty.
    """
    assert settings.learning_rate is not None  # the settings fill in both
    assert settings.weight_decay is not None
    named = list(network.named_parameters())
    shrunk = [weight for name, weight in named if weight.ndim > 1 and "share" not in name]
    left = [weight for name, weight in named if weight.ndim <= 1 or "share" in name]
    groups = [{"params": shrunk, "weight_decay": settings.weight_decay}, {"params": left, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, settings.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, settings.learning_rate, fused=True)
