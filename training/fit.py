"""Learns: truncated back-propagation through time over lanes with carried state, in plain PyTorch.

What is learned from, and in which unit losses and scores are, says `objective`.

On a CPU the same seed, data and number of threads give the same weights, bit for bit, unless a time limit cuts in.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.cells import State
from training.errors import Diverged
from training.lanes import PADDING, Plan, plan_epoch
from training.network import Network, build_network
from training.objective import build_objective
from training.series import Scaler, Series, Split
from training.settings import Architecture, Fit

Stop = Literal["epochs", "patience", "minutes", "interrupted", "diverged"]

# The cosine ends at this part of the learning rate, not at zero: the last epochs should still learn something.
FINAL_RATE = 0.02


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch; `loss` and `score` are in the objective's unit, where 1 is no better than a naive guess."""

    number: int
    loss: float
    score: float
    learning_rate: float
    elapsed_s: float
    progress: float  # 0..1


@dataclass(frozen=True)
class Fitted:
    """The network with its best weights, and how it came to them."""

    network: Network
    epochs: tuple[Epoch, ...]
    best: Epoch
    stopped: Stop


def fit(
    series: Series,
    split: Split,
    scaler: Scaler,
    architecture: Architecture,
    settings: Fit,
    on_epoch: Callable[[Epoch, Epoch], None] = lambda _epoch, _best: None,
) -> Fitted:
    """Train a network; keep the weights with the best validation score, the state carried as in serving.

    Ctrl-C ends it early and keeps the best weights so far; before the first epoch is done it goes through.

    Args:
        series: the whole series; rows outside the training and validation parts are not looked at.
        split: which rows teach and which choose.
        scaler: of the training part.
        architecture: what to build.
        settings: how to learn.
        on_epoch: called after each epoch with it and the best so far.

    Raises:
        Diverged: the loss was NaN or infinite before any epoch was done.
    """
    with _own_generator(settings.seed):
        return _Training(series, split, scaler, architecture, settings).run(on_epoch)


class _Training:
    """The life of one training; reads top to bottom."""

    def __init__(self, series: Series, split: Split, scaler: Scaler, architecture: Architecture, settings: Fit) -> None:
        self.settings = settings
        self.network = build_network(architecture, scaler, settings.seed)
        self.optimizer = _optimizer(self.network, settings)
        self.average = copy.deepcopy(self.network)
        self.steps = 0
        self.rng = np.random.default_rng(settings.seed)
        self.stretches = series.stretches(split.train)
        self.validation = series.stretches(split.validation)
        self.values = torch.from_numpy(series.values)  # (time, features)
        self.objective = build_objective(series, split, scaler, architecture, torch.device("cpu"))
        self.started = time.monotonic()

    def run(self, on_epoch: Callable[[Epoch, Epoch], None]) -> Fitted:
        """Epochs until there is a reason to stop; then back to the best weights."""
        history: list[Epoch] = []
        best: Epoch | None = None
        weights: dict[str, Tensor] = {}
        stopped: Stop | None = None
        try:
            while stopped is None:
                epoch = self.epoch(len(history) + 1)
                history.append(epoch)
                if best is None or epoch.score < best.score:
                    best, weights = epoch, _copy(self.average)
                on_epoch(epoch, best)
                stopped = self.reason_to_stop(epoch, best)
        except (KeyboardInterrupt, Diverged) as error:
            if best is None:
                raise
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "diverged"
        assert best is not None  # the loop ends only after an epoch
        self.average.load_state_dict(weights)
        self.average.eval()
        return Fitted(self.average, tuple(history), best, stopped)

    def epoch(self, number: int) -> Epoch:
        """Walk all lanes once, then see how the network does on the validation part.

        Raises:
            Diverged: the loss or the score is not a number.
        """
        plan = plan_epoch(
            self.stretches,
            lanes=self.settings.lanes,
            chunk=self.settings.chunk,
            burn_in=self.settings.burn_in,
            cold_share=self.settings.cold_share,
            rng=self.rng,
        )
        loss = self.learn(plan, number)
        score = self.score()
        if not math.isfinite(loss + score):
            raise Diverged(
                f"epoch {number}: loss {loss}, score {score}; expected numbers: try a smaller --learning-rate"
            )
        progress = 1.0 if number == self.settings.epochs else self.progress(number)
        return Epoch(number, loss, score, self.rate(progress), time.monotonic() - self.started, progress)

    def learn(self, plan: Plan, number: int) -> float:
        """One optimiser step a chunk, the state carried along; returns the mean loss."""
        self.network.train()
        state = self.network.fresh_state(plan.rows.shape[1])
        total, count = 0.0, 0.0
        for index in range(plan.chunks):
            x, truth = self.chunk(plan, index)
            state = _reset(state, torch.from_numpy(plan.fresh[index]))
            outputs, following = self.network.scaled_sequence(x, state)
            state = tuple(part.detach() for part in following)  # carried on, but no gradient goes back through it
            error, known = self.objective.loss(outputs, truth)
            if known == 0:
                continue  # nothing but burn-in and padding
            self.optimizer.zero_grad()
            (error / known).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
            self.set_rate(self.rate(self.progress(number - 1 + index / plan.chunks)))
            self.optimizer.step()
            self.follow()
            total, count = total + float(error.detach()), count + known
        return total / max(count, 1.0)

    def follow(self) -> None:
        """Move the average a little towards the network: it is what is scored and kept, the network itself jumps about.

        Quickly in the first steps, else it would stay near the starting weights for a hundred of them.
        """
        self.steps += 1
        kept = min(self.settings.average, self.steps / (self.steps + 10))
        with torch.no_grad():
            for slow, quick in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(quick, 1.0 - kept)

    def chunk(self, plan: Plan, index: int) -> tuple[Tensor, Tensor]:
        """The inputs (time, lanes, features), some made missing, and what is true, unknown where it does not count."""
        part = slice(index * plan.chunk, (index + 1) * plan.chunk)
        rows = torch.from_numpy(plan.rows[part])
        real = rows != PADDING
        rows = rows.clamp(min=0)
        x = self.hide(self.values[rows]).masked_fill(~real.unsqueeze(-1), math.nan)
        scored = torch.from_numpy(plan.scored[part])
        return x, self.objective.truth(rows, scored)

    def hide(self, x: Tensor) -> Tensor:
        """Make single values missing, and whole sensors for the length of the chunk.

        A network that has never met a missing value has random weights where the guard tells it of one.
        """
        if self.settings.hide == 0:
            return x
        lost = torch.rand(x.shape) < self.settings.hide
        silent = torch.rand(x.shape[1:]) < self.settings.hide
        return x.masked_fill(lost | silent, math.nan)

    @torch.no_grad()
    def score(self) -> float:
        """The mean loss on the validation part, timestep after timestep as in serving."""
        self.average.eval()
        total, count = 0.0, 0
        for first, end in self.validation:
            outputs, _ = self.average.scaled_sequence(self.values[first:end].unsqueeze(1), self.average.fresh_state(1))
            rows = torch.arange(first, end).unsqueeze(1)
            error, known = self.objective.loss(
                outputs, self.objective.truth(rows, torch.ones_like(rows, dtype=torch.bool))
            )
            total, count = total + float(error), count + known
        return total / max(count, 1)

    def progress(self, epochs: float) -> float:
        """How far the training is, 0..1: by epochs, or by the clock where that is further."""
        clock = 0.0
        if self.settings.minutes is not None:
            clock = (time.monotonic() - self.started) / (60.0 * self.settings.minutes)
        return min(1.0, max(clock, epochs / self.settings.epochs))

    def rate(self, progress: float) -> float:
        """Learning rate: a straight line up, then half a cosine down."""
        settings = self.settings
        if progress < settings.warm_up:
            # not from zero, which would waste the first step
            return settings.learning_rate * max(progress / settings.warm_up, FINAL_RATE)
        turn = math.pi * (progress - settings.warm_up) / (1.0 - settings.warm_up)
        return settings.learning_rate * (FINAL_RATE + (1.0 - FINAL_RATE) * (1.0 + math.cos(turn)) / 2.0)

    def set_rate(self, rate: float) -> None:
        """Put the learning rate into the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def reason_to_stop(self, epoch: Epoch, best: Epoch) -> Stop | None:
        """Why this epoch is the last one, if it is."""
        if epoch.number == self.settings.epochs:
            return "epochs"
        if epoch.progress >= 1.0:
            return "minutes"
        return "patience" if epoch.number - best.number >= self.settings.patience else None


def _optimizer(network: Network, settings: Fit) -> torch.optim.Optimizer:
    """AdamW that shrinks matrices and leaves biases and the head's share of persistence alone."""
    named = list(network.named_parameters())
    shrunk = [weight for name, weight in named if weight.ndim > 1 and "share" not in name]
    left = [weight for name, weight in named if weight.ndim <= 1 or "share" in name]
    groups = [{"params": shrunk, "weight_decay": settings.weight_decay}, {"params": left, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _reset(state: State, fresh: Tensor) -> State:
    """Zero the state of the lanes that begin a run: the batch is the last axis but one of every part."""
    return tuple(part.masked_fill(fresh[:, None], 0.0) for part in state)


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Chance that depends on the seed alone, and that leaves the caller's untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
