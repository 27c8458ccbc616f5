"""Learns: truncated back-propagation through time over lanes with carried state, in plain PyTorch.

What is learned from, and in which unit losses and scores are, says `objective`.

On a CPU the same seed, data and number of threads give the same weights, bit for bit, unless a time limit cuts in.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.data.scaler import Scaler
from training.data.series import Series
from training.data.split import Split
from training.errors import Diverged, SettingsError
from training.learning import checkpoint
from training.learning.checkpoint import Keeper
from training.learning.lanes import PADDING, Plan, plan_epoch, plan_walk
from training.learning.objective import build_objective
from training.learning.optimizer import build_optimizer
from training.learning.schedule import rate
from training.network.cells import State
from training.network.network import Network, build_network
from training.settings import Architecture, Fit

Stop = Literal["epochs", "patience", "minutes", "interrupted", "diverged"]

# Rows whose inputs and truths are looked up at once: so many that the fixed cost of a look-up does not count, so few that they
# stay in the processor's cache and are small beside the series.
BLOCK_ROWS = 8192
# A validation part of up to so many rows is looked up once and kept: a few megabytes, and a fiftieth of a short epoch's time.
KEPT_ROWS = 16_384


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
    """The network with its best weights, on the CPU, and how it came to them; best are the last where `Fit.keep` says so."""

    network: Network
    epochs: tuple[Epoch, ...]
    best: Epoch
    stopped: Stop
    device: str


@dataclass(frozen=True)
class Batch:
    """One chunk of all lanes."""

    x: Tensor  # (time, lanes, features)
    truth: Tensor  # (time, lanes, ...)
    known: float  # how much of the truth counts
    fresh: Tensor | None  # (lanes,) whether the lane begins with a zero state; None where none does


def fit(
    series: Series,
    split: Split,
    scaler: Scaler,
    architecture: Architecture,
    settings: Fit,
    on_epoch: Callable[[Epoch, Epoch], None] = lambda _epoch, _best: None,
    *,
    keeper: Keeper | None = None,
) -> Fitted:
    """Train a network; keep the weights with the best validation score, the state carried as in serving, or the last ones.

    Ctrl-C ends it early and keeps the best weights so far; before the first epoch is done it goes through.

    Args:
        series: the whole series; rows outside the training and validation parts are not looked at.
        split: which rows teach and which choose.
        scaler: of the training part.
        architecture: what to build.
        settings: how to learn.
        on_epoch: called after each epoch with it and the best so far.
        keeper: where the training's state is kept, and where it goes on from if there is one; nothing is kept when None.

    Raises:
        Diverged: the loss was NaN or infinite before any epoch was done.
        SettingsError: a GPU was asked for and there is none.
        RunError: the state that was kept is not one of such a training.
    """
    with _own_generator(settings.seed):
        return _Training(series, split, scaler, architecture, settings, keeper).run(on_epoch)


def reason_to_stop(settings: Fit, epoch: Epoch, best: Epoch) -> Stop | None:
    """Why this epoch is the last one, if it is."""
    if epoch.number >= settings.epochs:
        return "epochs"
    if settings.minutes is not None and epoch.elapsed_s >= 60.0 * settings.minutes:
        return "minutes"
    return "patience" if epoch.number - best.number >= settings.patience else None


def history(state: checkpoint.State) -> tuple[list[Epoch], Epoch]:
    """The epochs that a kept state has behind it, and the best of them."""
    epochs = [Epoch(**epoch) for epoch in state["epochs"]]
    return epochs, epochs[state["best_epoch"] - 1]


class _Training:
    """The life of one training; reads top to bottom."""

    def __init__(
        self,
        series: Series,
        split: Split,
        scaler: Scaler,
        architecture: Architecture,
        settings: Fit,
        keeper: Keeper | None = None,
    ) -> None:
        self.settings = settings
        self.keeper = keeper
        self.device = _device(settings)
        # Built on the CPU, so that a seed means the same weights everywhere.
        self.network = build_network(architecture, scaler, settings.seed).to(self.device)
        self.steps = 0
        self.rng = np.random.default_rng(settings.seed)
        self.stretches = series.stretches(split.train)
        self.walk = plan_walk(series.stretches(split.validation))
        # (time, features); on a CPU the series' own memory
        self.values = torch.from_numpy(np.ascontiguousarray(series.values)).to(self.device)
        self.objective = build_objective(series, split, scaler, architecture, self.values)
        self.objective.measure(self.network.head)
        self.weights = list(self.network.parameters())
        self.optimizer = build_optimizer(self.network, settings)
        self.average = deepcopy(self.network).eval()
        self.averages = list(self.average.parameters())
        small = self.walk.chunks * self.walk.chunk * self.walk.lanes <= KEPT_ROWS
        self.validation = list(self.batches(self.walk)) if small else None
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.started = time.monotonic()

    def run(self, on_epoch: Callable[[Epoch, Epoch], None]) -> Fitted:
        """Epochs until there is a reason to stop; then back to the best weights."""
        state = self.keeper.found() if self.keeper else None
        if state:
            self.restore(state)
        stopped = reason_to_stop(self.settings, self.epochs[-1], self.best) if self.best else None
        try:
            while stopped is None:
                epoch = self.epoch(len(self.epochs) + 1)
                self.epochs.append(epoch)
                if self.best is None or self.settings.keep == "last" or epoch.score < self.best.score:
                    self.best, self.best_weights = epoch, _copy(self.average)
                if self.keeper:
                    self.keeper.keep(self.state())
                on_epoch(epoch, self.best)
                stopped = reason_to_stop(self.settings, epoch, self.best)
        except (KeyboardInterrupt, Diverged) as error:
            if self.best is None:
                raise
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "diverged"
        if self.keeper:
            self.keeper.flush()
        assert self.best is not None  # the loop ends only after an epoch
        self.average.load_state_dict(self.best_weights)
        return Fitted(self.average.cpu(), tuple(self.epochs), self.best, stopped, self.device.type)

    def state(self) -> checkpoint.State:
        """All that the next epoch depends on, beside the data and the settings."""
        assert self.best is not None  # asked for after an epoch
        return {
            "epochs": tuple(vars(epoch) for epoch in self.epochs),
            "best_epoch": self.best.number,
            "best": self.best_weights,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "generators": checkpoint.generators(self.device),
        }

    def restore(self, state: checkpoint.State) -> None:
        """Go back to a state.

        Raises:
            RunError: it is not one of such a training.
        """
        try:
            self.epochs, self.best = history(state)
            self.best_weights = state["best"]
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps = state["steps"]
            self.rng.bit_generator.state = state["rng"]
            checkpoint.set_generators(self.device, state["generators"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            assert self.keeper is not None  # that is where the state comes from
            raise checkpoint.damaged(self.keeper.folder / checkpoint.LAST, error) from error
        self.started = time.monotonic() - self.epochs[-1].elapsed_s

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
        scores = [epoch.score for epoch in self.epochs]
        loss = self.learn(plan, number, scores)
        score = self.score()
        if not math.isfinite(loss + score):
            raise Diverged(
                f"epoch {number}: loss {loss}, score {score}; expected numbers: try a smaller --learning-rate"
            )
        elapsed_s = time.monotonic() - self.started
        progress = self.progress(number, elapsed_s)
        return Epoch(number, loss, score, rate(self.settings, progress, scores), elapsed_s, progress)

    def learn(self, plan: Plan, number: int, scores: list[float]) -> float:
        """One optimiser step a chunk, the state carried along; returns the mean loss."""
        self.network.train()
        state = self.network.fresh_state(plan.lanes)
        errors: list[Tensor] = []
        count = 0.0
        for index, batch in enumerate(self.batches(plan, hide=self.settings.hide)):
            outputs, following = self.network.scaled_sequence(batch.x, _reset(state, batch.fresh))
            state = tuple(part.detach() for part in following)  # carried on, but no gradient goes back through it
            if batch.known == 0:
                continue  # nothing but burn-in and padding
            error = self.objective.loss(outputs, batch.truth)
            self.optimizer.zero_grad()
            (error / batch.known).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip, foreach=True)
            progress = self.progress(number - 1 + index / plan.chunks, time.monotonic() - self.started)
            self.set_rate(rate(self.settings, progress, scores))
            self.optimizer.step()
            self.follow()
            count += batch.known
            errors.append(error.detach())
            if len(errors) == 64:  # not one by one, which would wait for a GPU after each chunk
                errors = [_total(errors)]
        return float(_total(errors)) / max(count, 1.0) if errors else 0.0

    def follow(self) -> None:
        """Move the average a little towards the network: it is what is scored and kept, the network itself jumps about.

        Quickly in the first steps, else it would stay near the starting weights for a hundred of them.
        """
        self.steps += 1
        kept = min(self.settings.average, self.steps / (self.steps + 10))
        get_ema_multi_avg_fn(kept)(self.averages, self.weights, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def batches(self, plan: Plan, hide: float = 0.0) -> Iterator[Batch]:
        """The chunks of a plan in order, looked up many at a time."""
        many = max(BLOCK_ROWS // (plan.chunk * plan.lanes), 1)
        for first in range(0, plan.chunks, many):
            part = slice(first, first + many)
            rows = torch.from_numpy(plan.rows(part)).to(self.device)  # (chunks, time, lanes)
            padding = rows == PADDING
            rows.clamp_(min=0)
            x = self.values.index_select(0, rows.flatten()).view(*rows.shape, -1)
            if hide:
                _hide(x, hide)
            if plan.size[part].min() < plan.chunk:
                x[padding] = math.nan
            truth = self.objective.truth(rows, torch.from_numpy(plan.scored(part)).to(self.device))
            known = self.objective.known(truth).tolist()
            fresh = torch.from_numpy(plan.fresh[part]).to(self.device)
            for index, begins in enumerate(plan.fresh[part]):
                yield Batch(x[index], truth[index], known[index], fresh[index] if begins.any() else None)

    @torch.no_grad()
    def score(self) -> float:
        """The mean loss on the validation part, timestep after timestep as in serving."""
        state = self.average.fresh_state(self.walk.lanes)
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        for batch in self.validation or self.batches(self.walk):
            outputs, state = self.average.scaled_sequence(batch.x, _reset(state, batch.fresh))
            total += self.objective.loss(outputs, batch.truth)
            count += batch.known
        return float(total) / max(count, 1.0)

    def progress(self, epochs: float, elapsed_s: float) -> float:
        """How far the training is, 0..1: by epochs, or by the clock where that is further."""
        clock = 0.0 if self.settings.minutes is None else elapsed_s / (60.0 * self.settings.minutes)
        return min(1.0, max(clock, epochs / self.settings.epochs))

    def set_rate(self, learning_rate: float) -> None:
        """Put the learning rate into the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


def _device(settings: Fit) -> torch.device:
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise SettingsError(
            "device: got 'cuda', but torch finds no GPU here; expected cpu, or auto for a GPU if there is one"
        )
    return torch.device("cuda" if there and settings.device != "cpu" else "cpu")


def _hide(x: Tensor, share: float) -> None:
    """Make single values of (chunks, time, lanes, features) missing, and whole sensors for the length of a chunk.

    A network that has never met a missing value has random weights where the guard tells it of one.
    """
    silent = torch.rand((len(x), 1, *x.shape[2:]), device=x.device) < share
    x.masked_fill_(silent, math.nan)
    # Places instead of a number for each value, because most stay. One drawn twice is hidden once: with so many draws the
    # share that is hit is the one that was asked for.
    draws = round(-math.log1p(-share) * x.numel())
    x.view(-1)[torch.randint(x.numel(), (draws,), device=x.device)] = math.nan


def _reset(state: State, fresh: Tensor | None) -> State:
    """Zero the state of the lanes that begin a run: the batch is the last axis but one of every part."""
    return state if fresh is None else tuple(part.masked_fill(fresh[:, None], 0.0) for part in state)


def _total(errors: list[Tensor]) -> Tensor:
    return torch.stack([error.double() for error in errors]).sum()


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Chance that depends on the seed alone, and that leaves the caller's untouched."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
