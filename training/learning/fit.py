"""The training loop: truncated back-propagation through time with carried state, in plain PyTorch.

`objective` defines the targets, the loss, and the unit of losses and scores. A network with a linear link is a candidate
before its first epoch already: that is epoch 0, the regression alone.

On a CPU the same seed, data and number of threads give the same weights, bit for bit, unless a time limit ends the training.
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

from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split
from tidegate.training.errors import Diverged, SettingsError
from tidegate.training.learning import checkpoint
from tidegate.training.learning.batches import Plan, plan_epoch, plan_validation
from tidegate.training.learning.checkpoint import Checkpointer
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.links import Given, keep_corrections, prepare_links, set_links
from tidegate.training.learning.loader import Batch, BatchLoader
from tidegate.training.learning.objective import build_objective
from tidegate.training.learning.optimizer import build_optimizer
from tidegate.training.learning.schedule import rate
from tidegate.training.network.heads import ForecastHead
from tidegate.training.network.network import Network, build_network
from tidegate.training.settings import Architecture, Fit

Stop = Literal["epochs", "patience", "minutes", "interrupted", "diverged"]

# The batches of a validation part of up to this number of rows are made once and kept. With a hundred forecasts a row, that is
# some ten megabytes.
CACHED_ROWS = 16_384


@dataclass(frozen=True)
class FitResult:
    """The network on the CPU with the chosen weights, and its history. `Fit.keep` says whether the best or the last are chosen."""

    network: Network
    epochs: tuple[Epoch, ...]
    best: Epoch
    stopped: Stop
    device: str


def fit(
    series: Series,
    split: Split,
    scaler: Scaler,
    architecture: Architecture,
    settings: Fit,
    on_epoch: Callable[[Epoch, Epoch], None] = lambda _epoch, _best: None,
    *,
    checkpointer: Checkpointer | None = None,
    given: Given | None = None,
) -> FitResult:
    """Train a network and keep the weights with the best validation score, or the last ones.

    The validation score carries the state as serving does. Ctrl-C ends the training early and keeps the best weights so far;
    before the end of the first epoch it raises `KeyboardInterrupt`.

    Args:
        series: the whole series. Rows outside the training and validation parts are not read.
        split: the rows to train on, and those to validate on.
        scaler: of the training part.
        architecture: of the network.
        settings: of the training.
        on_epoch: called after each epoch with that epoch and the best one so far.
        checkpointer: saves the state of the training, which resumes from the last one if there is one. None saves nothing.
        given: what `prepare_links` makes of the architecture, if that is done already.

    Raises:
        Diverged: the loss was NaN or infinite before the first epoch ended.
        SettingsError: the settings ask for a GPU and there is none.
        RunError: the checkpoint does not fit this training.
    """
    with _isolated_generator(settings.seed):
        given = given or prepare_links(series, split, scaler, architecture)
        return Trainer(series, split, scaler, given, settings, checkpointer).run(on_epoch)


def reason_to_stop(settings: Fit, epoch: Epoch, best: Epoch) -> Stop | None:
    """Why the training stops after this epoch; None if it goes on."""
    if epoch.number >= settings.epochs:
        return "epochs"
    if settings.minutes is not None and epoch.elapsed_s >= 60.0 * settings.minutes:
        return "minutes"
    return "patience" if epoch.number - best.number >= settings.patience else None


def history(state: checkpoint.State) -> tuple[list[Epoch], Epoch]:
    """The epochs of a checkpoint, and the best of them."""
    epochs = [Epoch(**epoch) for epoch in state["epochs"]]
    return epochs, epochs[state["best_epoch"] - 1] if state["best_epoch"] else Epoch(**state["begin"])


class Trainer:
    """One training, from initial weights to the best ones."""

    def __init__(
        self,
        series: Series,
        split: Split,
        scaler: Scaler,
        given: Given,
        settings: Fit,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.settings = settings
        self.checkpointer = checkpointer
        self.device = _device(settings)
        # Built on the CPU, so that a seed gives the same weights everywhere.
        self.network = build_network(given.architecture, scaler, settings.seed).to(self.device)
        self.steps = 0
        self.rng = np.random.default_rng(settings.seed)
        self.segments = series.segments(split.train)
        self.validation_plan = plan_validation(series.segments(split.validation))
        # (time, features); on a CPU the series' own memory
        values = torch.from_numpy(np.ascontiguousarray(series.values)).to(self.device)
        self.objective = build_objective(series, split, scaler, given.architecture, values)
        self.objective.set_units(self.network.head)
        set_links(self.network, given.ridge, series, split, scaler)
        if given.weights is not None:  # after the units, to which they belong
            # Those of the monitors are not trained.
            self.network.load_state_dict(
                {name: part for name, part in given.weights.items() if not name.startswith("monitors.")}
            )
            keep_corrections(self.network)
        self.linear = isinstance(self.network.head, ForecastHead) and self.network.head.linear is not None
        self.weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(self.network, settings)
        self.average = deepcopy(self.network).eval()
        self.averages = [weight for weight in self.average.parameters() if weight.requires_grad]
        self.loader = BatchLoader(self.network, self.objective, values, series.segments())
        self.validation: list[Batch] | None = None  # the first score makes and keeps them where they are few
        self.epochs: list[Epoch] = []
        self.begin: Epoch | None = None  # epoch 0, of a network that forecasts before it learns
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.started = time.monotonic()

    def run(self, on_epoch: Callable[[Epoch, Epoch], None]) -> FitResult:
        """Train until there is a reason to stop, then restore the best weights."""
        state = self.checkpointer.load() if self.checkpointer else None
        if state:
            self.restore(state)
        stopped = reason_to_stop(self.settings, self.epochs[-1], self.best) if self.best else None
        try:
            if self.linear and not self.epochs and self.settings.keep == "best":
                self.begin = self.best = self.epoch_zero()
                self.best_weights = _copy(self.average)
            while stopped is None:
                epoch = self.epoch(len(self.epochs) + 1)
                self.epochs.append(epoch)
                if self.best is None or self.settings.keep == "last" or epoch.score < self.best.score:
                    self.best, self.best_weights = epoch, _copy(self.average)
                if self.checkpointer:
                    self.checkpointer.save(self.state())
                on_epoch(epoch, self.best)
                stopped = reason_to_stop(self.settings, epoch, self.best)
        except (KeyboardInterrupt, Diverged) as error:
            if not self.epochs:
                raise
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "diverged"
        if self.checkpointer:
            self.checkpointer.flush()
        assert self.best is not None  # the loop ends only after an epoch
        self.average.load_state_dict(self.best_weights)
        return FitResult(self.average.cpu(), tuple(self.epochs), self.best, stopped, self.device.type)

    def state(self) -> checkpoint.State:
        """The checkpoint: all that the next epoch depends on, beside data and settings."""
        assert self.best is not None  # called after an epoch
        return {
            "epochs": tuple(vars(epoch) for epoch in self.epochs),
            "best_epoch": self.best.number,
            "begin": vars(self.begin) if self.begin else None,
            "best": self.best_weights,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "generators": checkpoint.generators(self.device),
        }

    def restore(self, state: checkpoint.State) -> None:
        """Restore a checkpoint.

        Raises:
            RunError: it does not fit this training.
        """
        try:
            self.epochs, self.best = history(state)
            self.begin = Epoch(**state["begin"]) if state["begin"] else None
            self.best_weights = state["best"]
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps = state["steps"]
            self.rng.bit_generator.state = state["rng"]
            checkpoint.set_generators(self.device, state["generators"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            assert self.checkpointer is not None  # that is where the state comes from
            raise checkpoint.damaged(self.checkpointer.folder / checkpoint.LAST, error) from error
        self.started = time.monotonic() - self.epochs[-1].elapsed_s

    def epoch_zero(self) -> Epoch:
        """The score of the regression alone; its loss on the training part is not measured.

        Raises:
            Diverged: the score is not a number.
        """
        score = self.score()
        if not math.isfinite(score):
            raise Diverged(f"epoch 0: score {score}; expected a number: leave out --links linear")
        return Epoch(0, score, score, 0.0, time.monotonic() - self.started, 0.0)

    def epoch(self, number: int) -> Epoch:
        """Train on all rows once, then score the network on the validation part.

        Raises:
            Diverged: the loss or the score is not a number.
        """
        plan = plan_epoch(
            self.segments,
            batch_size=self.settings.lanes,
            chunk=self.settings.chunk,
            burn_in=self.settings.burn_in,
            cold_share=self.settings.cold_share,
            rng=self.rng,
        )
        scores = [epoch.score for epoch in self.epochs]
        loss = self.train_epoch(plan, number, scores)
        score = self.score()
        if not math.isfinite(loss + score):
            raise Diverged(
                f"epoch {number}: loss {loss}, score {score}; expected numbers: try a smaller --learning-rate"
            )
        elapsed_s = time.monotonic() - self.started
        progress = self.progress(number, elapsed_s)
        return Epoch(number, loss, score, rate(self.settings, progress, scores), elapsed_s, progress)

    def train_epoch(self, plan: Plan, number: int, scores: list[float]) -> float:
        """One optimizer step for each chunk, with the state carried along; returns the mean loss.

        A time limit ends it within the epoch.
        """
        self.network.train()
        state = self.network.initial_state(plan.batch_size)
        losses: list[Tensor] = []
        count = 0.0
        settings = self.settings
        for index, batch in enumerate(self.loader.batches(plan, hide=settings.hide, new_streams=settings.burn_in > 0)):
            outputs, next_state = batch.run(self.network, state)
            state = tuple(part.detach() for part in next_state)  # carried on without its gradient
            if batch.known == 0:
                continue  # only burn-in and padding
            loss = self.objective.loss(outputs, batch.targets)
            self.optimizer.zero_grad()
            (loss / batch.known).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip, foreach=True)
            progress = self.progress(number - 1 + index / plan.chunks, time.monotonic() - self.started)
            self.set_rate(rate(self.settings, progress, scores))
            self.optimizer.step()
            self.update_average()
            count += batch.known
            losses.append(loss.detach())
            if len(losses) == 64:  # a sum after each chunk would wait for the GPU
                losses = [_total(losses)]
            if self.time_is_up():
                break  # the rest of a long epoch would take longer than was asked for
        return float(_total(losses)) / max(count, 1.0) if losses else 0.0

    def update_average(self) -> None:
        """Update the exponential moving average of the weights, which is less noisy. The average is scored and kept.

        It moves quickly in the first steps; otherwise it would stay near the initial weights for a hundred of them.
        """
        self.steps += 1
        kept = min(self.settings.average, self.steps / (self.steps + 10))
        get_ema_multi_avg_fn(kept)(self.averages, self.weights, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @torch.no_grad()
    def score(self) -> float:
        """The mean loss on the validation part, with the state carried as in serving."""
        state = self.average.initial_state(self.validation_plan.batch_size)
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        plan = self.validation_plan
        if self.validation is None and plan.chunks * plan.chunk * plan.batch_size <= CACHED_ROWS:
            self.validation = list(self.loader.batches(plan))
        for batch in self.validation or self.loader.batches(plan):
            outputs, state = batch.run(self.average, state)
            total += self.objective.loss(outputs, batch.targets)
            count += batch.known
        return float(total) / max(count, 1.0)

    def progress(self, epochs: float, elapsed_s: float) -> float:
        """The progress of the training, 0..1: by epochs, or by the clock where that is further."""
        clock = 0.0 if self.settings.minutes is None else elapsed_s / (60.0 * self.settings.minutes)
        return min(1.0, max(clock, epochs / self.settings.epochs))

    def time_is_up(self) -> bool:
        """Whether the training has taken as long as it may."""
        minutes = self.settings.minutes
        return minutes is not None and time.monotonic() - self.started >= 60.0 * minutes

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


def _device(settings: Fit) -> torch.device:
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise SettingsError(
            "device: got 'cuda', but torch finds no GPU here; expected cpu, or auto for a GPU if there is one"
        )
    return torch.device("cuda" if there and settings.device != "cpu" else "cpu")


def _total(losses: list[Tensor]) -> Tensor:
    return torch.stack([loss.double() for loss in losses]).sum()


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@contextmanager
def _isolated_generator(seed: int) -> Iterator[None]:
    """Random numbers that depend on the seed alone; the caller's generator stays as it was."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
