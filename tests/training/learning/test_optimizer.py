"""Optimisers: which step each takes, and which weights are shrunk."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tidegate.training.learning.optimizer import build_optimizer
from tidegate.training.network.network import Network
from tidegate.training.settings import Fit

RATE, DECAY, MOMENTUM = 0.1, 0.01, 0.9


def stepped(network: Network, steps: int = 2, **settings: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Each weight before and after steps along a gradient of ones."""
    optimizer = build_optimizer(network, Fit(learning_rate=RATE, weight_decay=DECAY, momentum=MOMENTUM, **settings))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for _ in range(steps):
        for weight in network.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    return {name: (before[name], weight.detach()) for name, weight in network.named_parameters()}


def nesterov(weight: Tensor, decay: float) -> Tensor:
    """Two steps of SGD with Nesterov's momentum and classic L2, as published."""
    velocity = torch.zeros_like(weight)
    for _ in range(2):
        slope = 1.0 + decay * weight
        velocity = MOMENTUM * velocity + slope
        weight = weight - RATE * (slope + MOMENTUM * velocity)
    return weight


def adam(weight: Tensor, inside: float, beside: float) -> Tensor:
    """Two steps of Adam with L2 inside the gradient or beside it, as published."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (1, 2):
        slope = 1.0 + inside * weight
        weight = weight * (1 - RATE * beside)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weight = weight - RATE * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return weight


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        ("adamw", lambda weight, decay: adam(weight, 0.0, decay)),
        ("adam", lambda weight, decay: adam(weight, decay, 0.0)),
        ("sgd", nesterov),
    ],
)
def test_steps_are_those_that_were_published(
    make_network: Callable[..., Network], optimizer: str, wanted: Callable[[Tensor, float], Tensor]
) -> None:
    """Matrices are shrunk the optimizer's way; biases and shares are not shrunk at all."""
    for name, (before, after) in stepped(make_network(), optimizer=optimizer).items():
        decay = 0.0 if "bias" in name or "share" in name else DECAY
        torch.testing.assert_close(after, wanted(before, decay), rtol=1e-5, atol=1e-6, msg=name)


def test_what_is_not_given_is_the_optimisers_usual() -> None:
    """Each optimizer has a learning rate and a decay of its own; what is given is taken."""
    assert Fit(optimizer="sgd").learning_rate > Fit().learning_rate
    assert Fit(optimizer="adam").weight_decay < Fit().weight_decay
    given = Fit(optimizer="sgd", learning_rate=0.5, weight_decay=0.0)
    assert (given.learning_rate, given.weight_decay) == (0.5, 0.0)
