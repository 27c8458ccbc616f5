"""Hyperparameter search: many short trainings, scored on the validation part; then a full training with the best settings.

Laws:
1. The folder of a search is its whole state: `journal.log` has every trial. After a kill the same command continues the
   search, and several processes with the same folder share the work.
2. A process decides under a lock which settings come next, and whether it runs the full training. The lock ends with the
   process.
3. A trial belongs to a process, which holds its own lock while it lives. A trial whose process has ended is marked as
   failed, and its settings are tried again.
4. The held-out part is read once, after the full training with the best settings.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from tidegate.training import pipeline
from tidegate.training.data.prepare import Prepared, prepare
from tidegate.training.data.series import Series, season_steps
from tidegate.training.data.source import read_request
from tidegate.training.errors import Diverged, RunError, SettingsError
from tidegate.training.judging.ridge import Ridge
from tidegate.training.learning import run
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.fit import fit
from tidegate.training.learning.links import Given, prepare_links
from tidegate.training.search.space import (
    Range,
    Space,
    apply_values,
    as_text,
    check_space,
    grid_points,
    read_space,
)
from tidegate.training.settings import Calendar, Classify, Forecast, Request, Search

JOURNAL, DECISIONS, WORKERS = "journal.log", "decisions.lock", "workers"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
# Settings whose process was killed twice are not tried again: they may be the cause.
ATTEMPTS = 2
# No trial is pruned before this many are done.
PRUNE_AFTER_TRIALS = 4


@dataclass(frozen=True)
class Outcome:
    """The outcome of a search so far.

    Attributes:
        trials: all finished trials, in order.
        importance: of each setting for the score, with a sum of 1; empty with too few trials.
        left: the number of trials still to do, in all processes.
        best: the version of the full training with the best settings; None if another process trains it.
    """

    trials: tuple[FrozenTrial, ...]
    importance: Mapping[str, float]
    left: int
    best: pipeline.Published | None


@dataclass(frozen=True)
class Callbacks:
    """Callbacks for each finished trial (with the number done), each epoch of the full training, and each note to the user."""

    on_trial: Callable[[FrozenTrial, int], None]
    on_epoch: Callable[[Epoch, Epoch], None]
    on_note: Callable[[str], None]


def tune(request: Request, search: Search, callbacks: Callbacks, prepared: Prepared | None = None) -> Outcome:
    """Search until enough trials are done, then train in full with the best settings and export.

    Ctrl-C ends the search with the trials done so far.

    Args:
        request: of the training; the searched settings are replaced. `out` is the folder of the search.
        search: the space, the number of trials, and the methods.
        callbacks: called on each trial, epoch and note.
        prepared: what `prepare` made of the request, if that is done already.

    Raises:
        TrainingError: a problem that the user can solve.
    """
    # Checked before the data is read. The default space depends on the data too.
    check_space(request, search)
    prepared = prepared or prepare(request, read_request(request), callbacks.on_note)
    series = prepared.series
    season = request.season or season_steps(series.period_s)
    space = read_space(
        search.search, grid=search.sampler == "grid", season=bool(season), forecast=request.task == "forecast"
    )
    request.out.mkdir(parents=True, exist_ok=True)
    with _Worker(request, search, space, series) as worker:
        try:
            worker.work(TrialRunner(request, search, prepared), callbacks)
            best = worker.finish(callbacks)
        except KeyboardInterrupt:
            callbacks.on_note("interrupted: finished trials are kept; the same command continues")
            best = None
        return Outcome(tuple(worker.done()), worker.importance(), worker.left(), best)


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials, one after another."""

    request: Request
    search: Search
    prepared: Prepared
    # What was prepared, and the regression of the linear link, by the calendar.
    kept: dict[Calendar, tuple[Prepared, Ridge | None]] = field(default_factory=dict)

    def score(self, trial: optuna.Trial) -> float:
        """The best validation score of the settings of a trial.

        Raises:
            TrialPruned: the trial is worse than others at this epoch, it diverged, or its settings are inconsistent.
            KeyboardInterrupt: the user stopped it.
        """

        def report_epoch(epoch: Epoch, _best: Epoch) -> None:
            trial.report(epoch.score, epoch.number)
            # After the last epoch pruning saves nothing: the trial counts with its best score.
            if epoch.number < self.search.trial_epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            request = apply_values(self.request, trial.params)
            settings = request.fit.model_copy(update={"epochs": self.search.trial_epochs, "minutes": None})
            prepared, given = self.prepare(request)
            result = fit(
                prepared.series,
                prepared.split,
                prepared.scaler,
                given.architecture,
                settings,
                report_epoch,
                given=given,
            )
        except (Diverged, ValidationError, SettingsError) as error:
            trial.set_user_attr("why", " ".join(str(error).split()))
            raise optuna.TrialPruned from error
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return result.best.score

    def prepare(self, request: Request) -> tuple[Prepared, Given]:
        """The input of a trial: the series with the calendar of its request, and the architecture."""
        calendar = request.source.calendar
        if calendar not in self.kept:
            same = calendar == self.request.source.calendar
            self.kept[calendar] = self.prepared if same else prepare(request, read_request(request), _no_note), None
        prepared, ridge = self.kept[calendar]
        architecture = prepared.architecture.model_copy(update=request.shape.model_dump())
        task = architecture.task
        if not isinstance(task, Classify):
            # Validated: a link may need a season, and there may be none.
            task = Forecast.model_validate(task.model_dump() | {"links": request.links})
            architecture = architecture.model_copy(update={"task": task})
        given = prepare_links(prepared.series, prepared.split, prepared.scaler, architecture, ridge=ridge)
        if given.ridge:
            self.kept[calendar] = prepared, given.ridge
        return prepared, given


def _no_note(_note: str) -> None:
    """The notes on the data were given before the first trial."""


class _Worker:
    """One process of a search."""

    def __init__(self, request: Request, search: Search, space: Space, series: Series) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.request = request
        self.search = search
        self.space = space
        self.series = series
        self.folder = request.out
        self.name = f"{os.getpid()}-{time.time_ns()}"
        self.ends_s = None if search.minutes is None else time.monotonic() + 60.0 * search.minutes
        (self.folder / WORKERS).mkdir(exist_ok=True)
        with self._decision_lock():
            _truncate_journal(self.folder / JOURNAL)
            self.study = _open_study(self.folder / JOURNAL, search)
            self._check_same(series)
        self.total = (
            min(search.trials, sum(1 for _ in grid_points(space))) if search.sampler == "grid" else search.trials
        )

    def __enter__(self) -> Self:
        path = self.folder / WORKERS / self.name
        self.handle = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_error: object) -> None:
        (self.folder / WORKERS / self.name).unlink()
        os.close(self.handle)

    def work(self, learner: TrialRunner, callbacks: Callbacks) -> None:
        """Trial after trial until enough are done or started, or the time is up."""
        while trial := self._next_trial():
            try:
                self.study.tell(trial, learner.score(trial))
            except optuna.TrialPruned:
                # Its last score is its value, so that the sampler can use it.
                self.study.tell(trial, state=TrialState.PRUNED)
            except BaseException as error:
                # Ctrl-C is no fault of the settings.
                self._fail_trial(trial.number, attempts=0 if isinstance(error, KeyboardInterrupt) else 1)
                raise
            callbacks.on_trial(self.study.trials[trial.number], len(self.done()))

    def done(self) -> list[FrozenTrial]:
        """The finished trials, in order."""
        return self.study.get_trials(deepcopy=False, states=DONE)

    def left(self) -> int:
        """The number of trials still to do, in all processes."""
        return max(self.total - len(self.done()), 0)

    def importance(self) -> dict[str, float]:
        """The importance of each setting for the score; empty with too few trials."""
        scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(scored) < 2 or len({trial.value for trial in scored}) < 2:
            return {}
        return optuna.importance.get_param_importances(self.study)

    def finish(self, callbacks: Callbacks) -> pipeline.Published | None:
        """Train in full with the best settings and export, unless another process does or did.

        Raises:
            RunError: all trials are done, and none has a score.
        """
        with self._decision_lock():
            self._fail_dead_trials()
            scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            best = min(scored, key=lambda trial: (trial.value, trial.number), default=None)
            note = self._reason_to_skip(best)
            if note:
                callbacks.on_note(note)
                return None
            self.study.set_user_attr("finisher", self.name)
        assert best is not None  # or there was a note
        callbacks.on_note(
            f"trial {best.number} is the best, with a validation score of {best.value:.4f}: training it in full"
        )
        published = self._publish(best, callbacks)
        if published.run.outcome.stopped != "interrupted":
            self.study.set_user_attr("published", best.number)
        return published

    def _reason_to_skip(self, best: FrozenTrial | None) -> str:
        """Why this process does not run the full training; empty if it does."""
        known = self.study.user_attrs
        if self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return "other processes are still at work: the last one trains in full with the best settings"
        if self._is_alive(known.get("finisher", "")):
            return "another process trains in full with the best settings"
        if best is None:
            if self.left():
                return "no trial has a score yet"
            raise RunError(f"tune: no trial in {self.folder} has a score; try other values with --search")
        if known.get("published") == best.number:
            return f"the best of {len(self.done())} trials is exported already; raise --trials to go on"
        return ""

    def _publish(self, best: FrozenTrial, callbacks: Callbacks) -> pipeline.Published:
        out = self.folder / f"best-{best.number}"
        request = apply_values(self.request, best.params).model_copy(update={"out": out})
        started = run.read(out) if (out / run.RUN).exists() else None
        if isinstance(started, run.Run) and started.outcome.stopped != "interrupted":  # killed before it was exported
            return pipeline.export_run(
                out, request.models, data=None, name=request.name, version=request.version, season=request.season
            )
        full = run.resumed(out, request) if started else request
        same = full.source == self.request.source
        # The notes on the data were given before the first trial.
        prepared = prepare(full, self.series if same else read_request(full), _no_note)
        resuming = request.model_copy(update={"resume": out if started else None})
        return pipeline.train(resuming, callbacks.on_epoch, callbacks.on_note, prepared)

    def _next_trial(self) -> optuna.Trial | None:
        """Start a trial; None if enough are done or running, or the time is up."""
        if self.ends_s is not None and time.monotonic() >= self.ends_s:
            return None
        with self._decision_lock():
            self._fail_dead_trials()
            trials = self.study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING))
            if len(trials) >= self.total:
                return None
            # Each trial has its own generator, so that no two processes draw the same settings.
            self.study.sampler = _sampler(self.search, self.request.fit.seed + len(self.study.trials))
            if self.search.sampler == "grid":
                self._enqueue_from_grid()
            trial = self.study.ask(_distributions(self.space))
            trial.set_user_attr("worker", self.name)
            return trial

    def _enqueue_from_grid(self) -> None:
        """Enqueue the first combination that no trial has finished, runs, or waits for."""
        states = (*DONE, TrialState.RUNNING, TrialState.WAITING)
        taken = [
            trial.params or trial.system_attrs.get("fixed_params")
            for trial in self.study.get_trials(deepcopy=False, states=states)
        ]
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.enqueue_trial(next(values for values in grid_points(self.space) if values not in taken))

    def _fail_dead_trials(self) -> None:
        """Fail the trials of processes that have ended."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._is_alive(trial.user_attrs.get("worker", "")):
                self._fail_trial(trial.number)

    def _fail_trial(self, number: int, attempts: int = 1) -> None:
        """Mark a trial as failed; enqueue its settings again, unless they were tried too often."""
        trial = self.study.trials[number]
        attempts += trial.user_attrs.get("attempts", 0)
        self.study.tell(number, state=TrialState.FAIL)
        if attempts < ATTEMPTS and trial.params:
            self.study.enqueue_trial(trial.params, user_attrs={"attempts": attempts})

    def _is_alive(self, worker: str) -> bool:
        """Whether a process is alive: its lock ends with it."""
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

    def _decision_lock(self) -> AbstractContextManager[None]:
        return _locked(self.folder / DECISIONS)

    def _check_same(self, series: Series) -> None:
        """Check that the search in the folder is this one.

        Raises:
            RunError: its settings differ.
        """
        asked = self.request.model_dump(mode="json", exclude={"models", "name", "version", "out", "held_out"})
        current: dict[str, Any] = {
            "request": asked,
            "data": series.sha256,
            "space": as_text(self.space),
            "trial_epochs": self.search.trial_epochs,
        }
        for what, value in current.items():
            known = self.study.user_attrs.get(what)
            if known is None:
                self.study.set_user_attr(what, value)
            elif known != value:
                raise RunError(
                    f"out: {self.folder} holds a search with other settings ({what.replace('_', ' ')}); "
                    f"give the same as before, or choose another folder with --out"
                )


class _Lock(JournalFileOpenLock):
    """A lock that ends with the process; Optuna's own are files that remain after a kill."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.handle = -1

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Release the lock."""
        os.close(self.handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _Lock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _truncate_journal(journal: Path) -> None:
    """Remove half a line that a kill left at the end, which would make the next line unreadable."""
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
        # Scores during the warm-up of the learning rate predict little.
        return MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=search.trial_epochs // 5)
    if search.pruner == "hyperband":
        return HyperbandPruner(min_resource=max(search.trial_epochs // 9, 1), max_resource=search.trial_epochs)
    return NopPruner()


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Any) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values.values)
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
