"""Searches: what is tried, what survives a kill, and what comes of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.pruners import ThresholdPruner
from optuna.trial import TrialState

from tests.training.light import LIGHT_OPTIONS
from tidegate.training.cli.app import main
from tidegate.training.data.prepare import prepare
from tidegate.training.data.series import Series
from tidegate.training.data.source import read_request
from tidegate.training.data.write import write_csv
from tidegate.training.errors import RunError
from tidegate.training.learning.run import load
from tidegate.training.search import tune
from tidegate.training.search.space import read_space
from tidegate.training.search.trials import draw, tables, trial_line
from tidegate.training.search.tune import Callbacks, Outcome, TrialRunner
from tidegate.training.settings import Fit, Request, Search, Shape, Source

QUICK = Search(trials=4, trial_epochs=2, search="hidden=4,8;learning_rate=1e-3..1e-1", sampler="random")
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def toy_csv(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A table with a toy series."""
    series = make_series(400)
    path = tmp_path_factory.mktemp("toy") / "toy.csv"
    write_csv(series, path, series.spans)
    return path


def request_of(toy_csv: Path, out: Path) -> Request:
    """A small request for the toy table."""
    return Request(
        source=Source(data=str(toy_csv)),
        target=("s0",),
        horizons=(1, 3),
        links=("last",),
        follow=False,
        shape=Shape(hidden=8, level="off"),
        fit=Fit(epochs=3, lanes=4, chunk=16),
        models=out / "models",
        name="toy",
        out=out,
    )


class Search4:
    """A search without its end: the best is not learned in full, which takes an export."""

    def __init__(self, request: Request, search: Search = QUICK) -> None:
        self.request = request
        self.search = search
        self.finished: list[int] = []
        self.on_trial: Callable[[Any, int], None] = lambda trial, _done: self.finished.append(trial.number)

    def run(self) -> list[Any]:
        """Work until all is done; returns the trials."""
        series = read_request(self.request)
        learner = TrialRunner(self.request, self.search, prepare(self.request, series, lambda _: None))
        self.request.out.mkdir(exist_ok=True)
        space = read_space(self.search.search, grid=self.search.sampler == "grid")
        with tune._Worker(self.request, self.search, space, series) as worker:
            worker.work(learner, Callbacks(self.on_trial, lambda *_: None, print))
            return worker.done()


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_tries_as_often_as_asked(toy_csv: Path, tmp_path: Path, sampler: str) -> None:
    """Each trial has values of the space and a score, and the same seed tries the same."""
    search = QUICK.model_copy(update={"sampler": sampler, "pruner": "none"})
    trials = Search4(request_of(toy_csv, tmp_path / "one"), search).run()
    again = Search4(request_of(toy_csv, tmp_path / "two"), search).run()
    assert len(trials) == 4
    assert all(trial.params["hidden"] in {4, 8} and 1e-3 <= trial.params["learning_rate"] <= 1e-1 for trial in trials)
    assert [(trial.params, trial.value) for trial in trials] == [(trial.params, trial.value) for trial in again]
    assert len({trial.params["learning_rate"] for trial in trials}) == 4


def test_a_grid_is_walked_once(toy_csv: Path, tmp_path: Path) -> None:
    """Every combination, however many trials are allowed."""
    search = QUICK.model_copy(update={"sampler": "grid", "search": "hidden=4,8;layers=1,2", "trials": 99})
    trials = Search4(request_of(toy_csv, tmp_path), search).run()
    assert [tuple(trial.params.values()) for trial in trials] == [(4, 1), (4, 2), (8, 1), (8, 2)]


def test_a_search_goes_on_where_it_was(toy_csv: Path, tmp_path: Path) -> None:
    """More trials later are the same as all at once; those that are done are not done again."""
    request = request_of(toy_csv, tmp_path / "search")
    Search4(request, QUICK.model_copy(update={"trials": 2})).run()
    later = Search4(request)
    trials = later.run()
    assert later.finished == [2, 3]
    whole = Search4(request_of(toy_csv, tmp_path / "whole")).run()
    assert [trial.params for trial in trials] == [trial.params for trial in whole]


def test_a_trial_scores_what_its_training_scores(toy_csv: Path, tmp_path: Path) -> None:
    """On the validation part: rows of the held-out part may be anything."""
    request = request_of(toy_csv, tmp_path / "search")
    series = read_request(request)
    trial = Search4(request, QUICK.model_copy(update={"trials": 1})).run()[0]
    series.values[340:] = 1e6
    prepared = prepare(request, series, print)
    settings = request.fit.model_copy(update={"epochs": 2, "learning_rate": trial.params["learning_rate"]})
    architecture = prepared.architecture.model_copy(update={"hidden": trial.params["hidden"]})
    fitted = tune.fit(series, prepared.split, prepared.scaler, architecture, settings)
    assert trial.value == fitted.best.score


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_what_does_worse_is_ended_early(toy_csv: Path, tmp_path: Path, pruner: str) -> None:
    """A trial that hardly learns is pruned once there are others to compare it with."""
    search = Search(
        trials=6,
        trial_epochs=6,
        sampler="grid",
        search="learning_rate=0.02,0.021,0.022,0.023,1e-8,0.024",
        pruner=pruner,
    )
    trials = Search4(request_of(toy_csv, tmp_path), search).run()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruner == "hyperband" or 1e-8 in [trial.params["learning_rate"] for trial in pruned]
    assert all(trial.last_step < 6 for trial in pruned)


def test_a_trial_that_is_done_is_not_ended_early(
    toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pruner that objects to every last epoch, as hyperband may, takes no finished trial out of the race."""
    monkeypatch.setattr(tune, "_pruner", lambda search: ThresholdPruner(upper=0.0, n_warmup_steps=search.trial_epochs))
    trials = Search4(request_of(toy_csv, tmp_path)).run()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4


def test_settings_that_fail_are_reported_and_not_tried_again(toy_csv: Path, tmp_path: Path) -> None:
    """A training that ends in no number counts as done, with the reason beside it."""
    search = QUICK.model_copy(update={"search": "learning_rate=1e20,0.01", "sampler": "grid"})
    request = request_of(toy_csv, tmp_path)
    request = request.model_copy(update={"fit": request.fit.model_copy(update={"average": 0.0})})
    bad, good = Search4(request, search).run()
    assert "smaller --learning-rate" in bad.user_attrs["why"]
    assert good.value is not None


def test_ctrl_c_keeps_what_is_done_and_tries_the_rest_later(toy_csv: Path, tmp_path: Path) -> None:
    """The trial that was cut off is tried again, with the same values."""
    request = request_of(toy_csv, tmp_path / "search")
    stopped = Search4(request)

    def press(trial: Any, _done: int) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    stopped.on_trial = press
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert len(Search4(request).run()) == 4


def test_another_search_in_the_same_folder_is_refused(toy_csv: Path, tmp_path: Path) -> None:
    """Scores of other data or other settings cannot be compared."""
    request = request_of(toy_csv, tmp_path)
    Search4(request, QUICK.model_copy(update={"trials": 1})).run()
    with pytest.raises(RunError, match=r"holds a search with other settings \(space\).*--out"):
        Search4(request, QUICK.model_copy(update={"search": "hidden=4,16"})).run()
    other = request.model_copy(update={"horizons": (1, 2)})
    with pytest.raises(RunError, match=r"other settings \(request\)"):
        Search4(other).run()


def start(toy_csv: Path, out: Path) -> subprocess.Popen[str]:
    """A process that searches in a folder, and says when each trial is done."""
    program = (
        f"import sys; from pathlib import Path; from {__name__} import *\n"
        "search = Search4(request_of(Path(sys.argv[1]), Path(sys.argv[2])), LONG)\n"
        "search.on_trial = lambda trial, done: print(trial.number, flush=True)\n"
        "search.run()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(toy_csv), str(out)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )


LONG = QUICK.model_copy(update={"trials": 8, "trial_epochs": 20, "pruner": "none"})


def test_a_killed_search_loses_no_trial_that_was_done(toy_csv: Path, tmp_path: Path) -> None:
    """Two processes share a search and one is killed in the midst of a trial: what is done stays, and the number is kept."""
    folder = tmp_path / "search"
    folder.mkdir()
    here = Search4(request_of(toy_csv, folder), LONG)
    with start(toy_csv, folder) as killed:
        assert killed.stdout is not None
        there = [int(killed.stdout.readline()) for _ in range(2)]

        def kill(trial: Any, _done: int) -> None:
            here.finished.append(trial.number)
            time.sleep(np.random.default_rng().uniform(0, 0.05))
            killed.kill()

        here.on_trial = kill
        trials = here.run()
        there += [int(number) for number in killed.stdout.read().split()]
    done = [trial.number for trial in trials]
    assert len(done) == 8
    assert here.finished
    assert killed.returncode == -signal.SIGKILL
    assert not set(there) & set(here.finished)
    assert set(there) | set(here.finished) <= set(done)
    assert len({trial.params["learning_rate"] for trial in trials}) == 8
    with (folder / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code": 4, "half')  # the least that a kill may leave
    more = LONG.model_copy(update={"trials": 9})
    for _ in range(2):  # what was written after the half line can be read
        assert len(Search4(request_of(toy_csv, folder), more).run()) == 9


def test_a_trial_whose_process_is_gone_is_tried_again(toy_csv: Path, tmp_path: Path) -> None:
    """It is marked as failed, and its settings have a second chance, but no third: it may be they that kill."""
    request = request_of(toy_csv, tmp_path)
    series = read_request(request)
    space = read_space(QUICK.search, grid=False)
    lost = []
    for _ in range(2):
        with tune._Worker(request, QUICK, space, series) as worker:
            trial = worker._next_trial()
            assert trial is not None
            lost.append(trial.params)
    assert lost[0] == lost[1]
    trials = Search4(request).run()
    assert len(trials) == 4
    assert lost[0] not in [trial.params for trial in trials]


def test_a_trial_of_a_process_that_lives_is_left_alone(toy_csv: Path, tmp_path: Path) -> None:
    """It counts as one of those that are under way, and the best is not learned in full before it is done."""
    request = request_of(toy_csv, tmp_path)
    notes: list[str] = []
    tell = Callbacks(lambda *_: None, lambda *_: None, notes.append)
    with tune._Worker(request, QUICK, read_space(QUICK.search, grid=False), read_request(request)) as worker:
        trial = worker._next_trial()
        assert trial is not None
        outcome = tune.tune(request, QUICK, tell)
        assert (len(outcome.trials), outcome.left, outcome.best) == (3, 1, None)
        assert notes[-1] == "other processes are still at work: the last one trains in full with the best settings"


def test_the_best_is_learned_in_full_and_exported(toy_csv: Path, tmp_path: Path) -> None:
    """Its settings, all epochs, a version of the model; once, however often the command is given. The data is told once."""
    request = request_of(toy_csv, tmp_path)
    notes: list[str] = []
    tell = Callbacks(lambda trial, done: notes.append(trial_line(trial, done)), lambda *_: None, notes.append)
    outcome = tune.tune(request, QUICK, tell)
    assert (len(outcome.trials), outcome.left) == (4, 0)
    assert outcome.best is not None
    best = min(outcome.trials, key=lambda trial: trial.value)
    record, _ = load(tmp_path / f"best-{best.number}")
    assert record.architecture.hidden == best.params["hidden"]
    assert record.fit.learning_rate == best.params["learning_rate"]
    assert record.outcome.epochs == 3
    assert (tmp_path / "models" / "toy" / "1" / "model.onnx").is_file()
    assert next(note for note in notes if note.startswith("trial")).startswith("trial 0: score 0.")
    assert sum("toy.csv: 400 rows" in note for note in notes) == 1
    again = tune.tune(request, QUICK, tell)
    assert again.best is None
    assert notes[-1] == "the best of 4 trials is exported already; raise --trials to go on"
    check_told(outcome, tmp_path)


def test_the_command_prints_tables_and_writes_a_picture(
    toy_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the time is up the best so far is exported; it says what is left and how to go on."""
    monkeypatch.chdir(tmp_path)
    request = request_of(toy_csv, Path("search"))
    Search4(request, QUICK.model_copy(update={"trials": 3})).run()
    arguments = [
        "--target",
        "s0",
        "--horizons",
        "1,3",
        "--hidden",
        "8",
        "--epochs",
        "3",
        "--lanes",
        "4",
        "--chunk",
        "16",
    ]
    arguments += [*LIGHT_OPTIONS, "--data", str(toy_csv), "--name", "toy", "--out", "search", "--search", QUICK.search]
    main(["tune", *arguments, "--trials", "9", "--trial-epochs", "2", "--minutes", "1e-9"])
    printed = capsys.readouterr().out
    assert "3 trials, the best first" in printed
    assert "how much each setting matters" in printed
    assert "6 of 9 trials are left: the same command continues" in printed
    assert (tmp_path / "search" / "tune.png").is_file()
    assert (tmp_path / "models" / "toy" / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "hidden"], "search: got 'hidden', expected name=values"),
        (["--trials", "0"], "trials: got '0', expected: greater than or equal to 1"),
        (["--sampler", "luck"], "sampler: got 'luck', expected: 'tpe', 'random' or 'grid'"),
        (["--resume", "run"], "resume: the same command with the same --out continues a search"),
        (["--sampler", "grid", "--search", "dropout=0..0.5"], "dropout is a range, which has no grid"),
    ],
)
def test_a_wrong_search_is_one_line(
    toy_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Exit code 2 and what to do, before anything is read or written."""
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--data", str(toy_csv), "--target", "s0", "--out", str(tmp_path / "search"), *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "search").exists()


def check_told(outcome: Outcome, folder: Path) -> None:
    """Tables and picture hold what came of the search."""
    from rich.console import Console

    console = Console(width=200, record=True, file=(folder / "table.txt").open("w", encoding="utf-8"))
    with console.file:
        console.print(tables(outcome))
    printed = console.export_text()
    best = min(outcome.trials, key=lambda trial: trial.value)
    assert f"{best.value:.4f}" in printed
    assert printed.index(f"{best.value:.4f}") == min(printed.index(f"{trial.value:.4f}") for trial in outcome.trials)
    assert "learning-rate" in printed
    assert sum(outcome.importance.values()) == pytest.approx(1.0)
    picture = draw(outcome, folder / "tune.png")
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")
