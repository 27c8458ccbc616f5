"""Searches for good settings: many short trainings, each judged on the validation part; the best one is done in full.

Laws:
1. All that is known of a search is in its folder: `journal.log` has every trial. A search that is killed goes on with the
   same command, and several processes that are started with the same folder work together.
2. What a process decides, which settings are tried next and whether it is the last to leave, it decides alone: under a lock
   that ends with the process.
3. A trial belongs to a process, which holds a lock of its own while it lives. A trial whose process is gone is marked as
   failed, and its settings are tried again.
4. The held-out part is looked at once, when the best settings have been learned in full.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from training import pipeline
from training.data.prepare import Prepared, prepare
from training.data.series import Series
from training.data.source import read_request
from training.errors import Diverged, RunError, SettingsError
from training.learning import run
from training.learning.fit import Epoch, fit
from training.search.space import Range, Space, Value, as_text, grid_of, read_space, with_values
from training.settings import Request, Search

JOURNAL, DECISIONS, WORKERS = "journal.log", "decisions.lock", "workers"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
# Settings whose process was killed twice are not tried a third time: it may be they that kill it.
ATTEMPTS = 2
# Trials that others are compared with before any is ended early.
PRUNE_AFTER_TRIALS = 4


@dataclass(frozen=True)
class Outcome:
    """What came of a search so far.

    Attributes:
        trials: every trial that was done, in order.
        importance: of each setting for the score, 1 together; empty where too few trials are done to say.
        left: how many trials are still to be done, here or elsewhere.
        best: the best settings learned in full and exported; None when another process does that, or is not done.
    """

    trials: tuple[FrozenTrial, ...]
    importance: Mapping[str, float]
    left: int
    best: pipeline.Published | None


@dataclass(frozen=True)
class Callbacks:
    """Whom a search tells: of each trial with how many are done, of an epoch of the last training, and of what is to be read."""

    on_trial: Callable[[FrozenTrial, int], None]
    on_epoch: Callable[[Epoch, Epoch], None]
    on_note: Callable[[str], None]


def tune(request: Request, search: Search, tell: Callbacks) -> Outcome:
    """Search until enough trials are done, then learn the best settings in full and export them.

    Ctrl-C ends it with what is done so far.

    Args:
        request: what to learn; the settings that are searched are replaced. `out` is the folder of the search.
        search: what to try, and how often.
        tell: whom to tell.

    Raises:
        TrainingError: something that the person can mend.
    """
    space = read_space(search.search, grid=search.sampler == "grid")
    with_values(request, {name: _first(values) for name, values in space.items()})
    series = read_request(request)
    prepared = prepare(request, series, tell.on_note)
    request.out.mkdir(parents=True, exist_ok=True)
    with _Worker(request, search, space, series) as worker:
        try:
            worker.work(Learner(request, search, prepared), tell)
            best = worker.finish(tell)
        except KeyboardInterrupt:
            tell.on_note("interrupted: what is done is kept; the same command goes on")
            best = None
        return Outcome(tuple(worker.done()), worker.importance(), worker.left(), best)


@dataclass(frozen=True)
class Learner:
    """Learns for one trial after another."""

    request: Request
    search: Search
    prepared: Prepared

    def score(self, trial: optuna.Trial) -> float:
        """The best validation score of the trial's settings.

        Raises:
            TrialPruned: it does worse than others at its age, diverged, or its settings do not go together.
            KeyboardInterrupt: the person ended it.
        """

        def told(epoch: Epoch, _best: Epoch) -> None:
            trial.report(epoch.score, epoch.number)
            # After its last epoch there is nothing left to save: a trial that came so far counts with its best score.
            if epoch.number < self.search.trial_epochs and trial.should_prune():
                raise optuna.TrialPruned

        prepared = self.prepared
        try:
            wanted = with_values(self.request, trial.params)
            settings = wanted.fit.model_copy(update={"epochs": self.search.trial_epochs, "minutes": None})
            architecture = prepared.architecture.model_copy(update=wanted.shape.model_dump())
            fitted = fit(prepared.series, prepared.split, prepared.scaler, architecture, settings, told)
        except (Diverged, ValidationError, SettingsError) as error:
            trial.set_user_attr("why", " ".join(str(error).split()))
            raise optuna.TrialPruned from error
        if fitted.stopped == "interrupted":
            raise KeyboardInterrupt
        return fitted.best.score


class _Worker:
    """One process of a search."""

    def __init__(self, request: Request, search: Search, space: Space, series: Series) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.request = request
        self.search = search
        self.space = space
        self.folder = request.out
        self.name = f"{os.getpid()}-{time.time_ns()}"
        self.ends_s = None if search.minutes is None else time.monotonic() + 60.0 * search.minutes
        (self.folder / WORKERS).mkdir(exist_ok=True)
        with self._alone():
            _mend(self.folder / JOURNAL)
            self.study = _open_study(self.folder / JOURNAL, search)
            self._check_same(series)
        self.total = min(search.trials, sum(1 for _ in grid_of(space))) if search.sampler == "grid" else search.trials

    def __enter__(self) -> Self:
        path = self.folder / WORKERS / self.name
        self.handle = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_error: object) -> None:
        (self.folder / WORKERS / self.name).unlink()
        os.close(self.handle)

    def work(self, learner: Learner, tell: Callbacks) -> None:
        """Trial after trial until enough are done or begun, or the time is up."""
        while trial := self._next():
            try:
                self.study.tell(trial, learner.score(trial))
            except optuna.TrialPruned:
                # Its last score is its value, so that what comes next learns from it as well.
                self.study.tell(trial, state=TrialState.PRUNED)
            except BaseException as error:
                # A person who presses Ctrl-C says nothing against the settings.
                self._give_up(trial.number, attempts=0 if isinstance(error, KeyboardInterrupt) else 1)
                raise
            tell.on_trial(self.study.trials[trial.number], len(self.done()))

    def done(self) -> list[FrozenTrial]:
        """The trials that have come to their end, in order."""
        return self.study.get_trials(deepcopy=False, states=DONE)

    def left(self) -> int:
        """How many trials are still to be done, by whomever."""
        return max(self.total - len(self.done()), 0)

    def importance(self) -> dict[str, float]:
        """How much each setting matters for the score; empty where it cannot be told yet."""
        scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(scored) < 2 or len({trial.value for trial in scored}) < 2:
            return {}
        return optuna.importance.get_param_importances(self.study)

    def finish(self, tell: Callbacks) -> pipeline.Published | None:
        """Learn the best settings in full and export them, unless another process will or did.

        Raises:
            RunError: all trials are done, and none came to a score.
        """
        with self._alone():
            self._reap()
            scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            best = min(scored, key=lambda trial: (trial.value, trial.number), default=None)
            note = self._why_not(best)
            if note:
                tell.on_note(note)
                return None
            self.study.set_user_attr("finisher", self.name)
        assert best is not None  # or there was a note
        tell.on_note(
            f"trial {best.number} is the best, with a validation score of {best.value:.4f}: learning it in full"
        )
        published = self._publish(best, tell)
        if published.run.outcome.stopped != "interrupted":
            self.study.set_user_attr("published", best.number)
        return published

    def _why_not(self, best: FrozenTrial | None) -> str:
        """Why there is nothing to finish; empty when there is."""
        known = self.study.user_attrs
        if self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return "other processes are still at work: the last one learns the best settings in full"
        if self._lives(known.get("finisher", "")):
            return "another process learns the best settings in full"
        if best is None:
            if self.left():
                return "no trial has come to a score yet"
            raise RunError(f"tune: no trial in {self.folder} came to a score; try other values with --search")
        if known.get("published") == best.number:
            return f"the best of {len(self.done())} trials is exported already; raise --trials to go on"
        return ""

    def _publish(self, best: FrozenTrial, tell: Callbacks) -> pipeline.Published:
        out = self.folder / f"best-{best.number}"
        request = with_values(self.request, best.params).model_copy(update={"out": out})
        begun = run.read(out) if (out / run.RUN).exists() else None
        if isinstance(begun, run.Run) and begun.outcome.stopped != "interrupted":  # killed before it was exported
            return pipeline.export_run(
                out, request.models, data=None, name=request.name, version=request.version, season=request.season
            )
        return pipeline.train(
            request.model_copy(update={"resume": out if begun else None}), tell.on_epoch, tell.on_note
        )

    def _next(self) -> optuna.Trial | None:
        """Begin a trial; None when enough are done or under way, or the time is up."""
        if self.ends_s is not None and time.monotonic() >= self.ends_s:
            return None
        with self._alone():
            self._reap()
            trials = self.study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING))
            if len(trials) >= self.total:
                return None
            # A generator of its own for each trial, so that no two processes draw the same.
            self.study.sampler = _sampler(self.search, self.request.fit.seed + len(self.study.trials))
            if self.search.sampler == "grid":
                self._enqueue_from_grid()
            trial = self.study.ask(_distributions(self.space))
            trial.set_user_attr("worker", self.name)
            return trial

    def _enqueue_from_grid(self) -> None:
        """Let the next trial be the first combination that none is done, running, or waiting for."""
        states = (*DONE, TrialState.RUNNING, TrialState.WAITING)
        taken = [
            trial.params or trial.system_attrs.get("fixed_params")
            for trial in self.study.get_trials(deepcopy=False, states=states)
        ]
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.enqueue_trial(next(values for values in grid_of(self.space) if values not in taken))

    def _reap(self) -> None:
        """Give up the trials of processes that are gone."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._lives(trial.user_attrs.get("worker", "")):
                self._give_up(trial.number)

    def _give_up(self, number: int, attempts: int = 1) -> None:
        """Mark a trial as failed, and have its settings tried again, unless they were tried too often already."""
        trial = self.study.trials[number]
        attempts += trial.user_attrs.get("attempts", 0)
        self.study.tell(number, state=TrialState.FAIL)
        if attempts < ATTEMPTS and trial.params:
            self.study.enqueue_trial(trial.params, user_attrs={"attempts": attempts})

    def _lives(self, worker: str) -> bool:
        """Whether a process is there: its lock ends with it."""
        if worker == self.name:
            return True
        path = self.folder / WORKERS / worker
        if not worker or not path.exists():
            return False
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        path.unlink(missing_ok=True)
        return False

    def _alone(self) -> AbstractContextManager[None]:
        return _locked(self.folder / DECISIONS)

    def _check_same(self, series: Series) -> None:
        """See that the folder's search is this one.

        Raises:
            RunError: it asks for something else.
        """
        asked = self.request.model_dump(mode="json", exclude={"models", "name", "version", "out", "held_out"})
        mine: dict[str, Any] = {
            "request": asked,
            "data": series.sha256,
            "space": as_text(self.space),
            "trial_epochs": self.search.trial_epochs,
        }
        for what, value in mine.items():
            known = self.study.user_attrs.get(what)
            if known is None:
                self.study.set_user_attr(what, value)
            elif known != value:
                raise RunError(
                    f"out: {self.folder} holds a search with other settings ({what.replace('_', ' ')}); "
                    f"give the same as before, or choose another folder with --out"
                )


class _Lock(JournalFileOpenLock):
    """Optuna's own locks are files that stay when a process is killed; this one ends with it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.handle = -1

    def acquire(self) -> bool:
        """Wait until it is ours."""
        self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Let others have it."""
        os.close(self.handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _Lock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _mend(journal: Path) -> None:
    """Take away half a line that a kill left at the end: what comes after it would be unreadable."""
    with _locked(journal.with_suffix(".lock")):
        content = journal.read_bytes() if journal.exists() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)


def _open_study(journal: Path, search: Search) -> optuna.Study:
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), _Lock(journal.with_suffix(".lock"))))
        return optuna.create_study(storage=storage, study_name="tune", load_if_exists=True, pruner=_pruner(search))
    except (ValueError, KeyError) as error:
        raise RunError(f"tune: {journal} is damaged ({error}); choose another folder with --out") from error


def _sampler(search: Search, seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True) if search.sampler == "tpe" else RandomSampler(seed=seed)


def _pruner(search: Search) -> BasePruner:
    if search.pruner == "median":
        # The warm-up of the learning rate says little of where a training ends.
        return MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=search.trial_epochs // 5)
    if search.pruner == "hyperband":
        return HyperbandPruner(min_resource=max(search.trial_epochs // 9, 1), max_resource=search.trial_epochs)
    return NopPruner()


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _first(values: Any) -> Value:
    if not isinstance(values, Range):
        first: Value = values.values[0]
        return first
    return int(values.low) if values.whole else values.low
