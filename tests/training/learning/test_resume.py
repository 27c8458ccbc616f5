"""A training that was stopped or killed goes on as if nothing had happened."""

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_files import small_files
from tests.training.light import LIGHT_OPTIONS
from tidegate.training.cli.app import main
from tidegate.training.cli.progress import FitProgress
from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.data.write import write_csv
from tidegate.training.errors import RunError
from tidegate.training.learning import checkpoint
from tidegate.training.learning.checkpoint import Checkpointer
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.fit import FitResult, Trainer, fit
from tidegate.training.settings import Architecture, Fit, Forecast

TASK = Forecast(targets=(0,), horizons=(1, 3), quantiles=(0.1, 0.9))
QUICK = Fit(epochs=5, lanes=4, chunk=16, burn_in=4, seed=5)
REPOSITORY = Path(__file__).parents[3]

Learn = Callable[..., FitResult]


@pytest.fixture
def learn(make_series: Callable[..., Series]) -> Learn:
    """Fits a small network of two layers with dropout to a toy series; can be interrupted after an epoch."""

    def run(settings: Fit = QUICK, folder: Path | None = None, stop_after: int = 0) -> FitResult:
        def interrupt(epoch: Epoch, _best: Epoch) -> None:
            if epoch.number == stop_after:
                raise KeyboardInterrupt

        series = make_series(400)
        split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
        architecture = Architecture(features=3, task=TASK, hidden=8, layers=2, dropout=0.2)
        checkpointer = Checkpointer(folder) if folder else None
        return fit(
            series, split, fit_scaler(series, split.train), architecture, settings, interrupt, checkpointer=checkpointer
        )

    return run


def same(one: FitResult, other: FitResult) -> bool:
    """Whether two trainings have the same weights, bit for bit, and the same history apart from the clock."""
    weights, others = one.network.state_dict(), other.network.state_dict()
    histories = (
        [(epoch.number, epoch.loss, epoch.score, epoch.learning_rate) for epoch in made.epochs] for made in (one, other)
    )
    return all(torch.equal(weights[name], others[name]) for name in weights) and len(set(map(tuple, histories))) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_training_goes_on_bit_for_bit(
    learn: Learn, tmp_path: Path, optimizer: str, stop_after: int
) -> None:
    """Whatever the optimizer, the end is that of a training that nobody interrupted."""
    settings = Fit.model_validate(
        {**QUICK.model_dump(exclude={"learning_rate", "weight_decay"}), "optimizer": optimizer}
    )
    assert learn(settings, tmp_path, stop_after).stopped == "interrupted"
    assert same(learn(settings, tmp_path), learn(settings))


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_schedules_that_look_back_go_on_too(learn: Learn, tmp_path: Path, schedule: str) -> None:
    """The epochs before the interruption count for the drops of the rate."""
    settings = QUICK.model_copy(update={"schedule": schedule, "drop_after": 2, "learning_rate": 0.5, "average": 0.0})
    learn(settings, tmp_path, stop_after=3)
    assert same(learn(settings, tmp_path), learn(settings))


def test_a_training_can_be_interrupted_again_and_again(learn: Learn, tmp_path: Path) -> None:
    """After every epoch."""
    for number in range(1, 5):
        learn(folder=tmp_path, stop_after=number)
    assert same(learn(folder=tmp_path), learn())


def test_a_finished_training_is_not_done_again(learn: Learn, tmp_path: Path) -> None:
    """All epochs are there already: the same network comes back."""
    first = learn(folder=tmp_path)
    again = learn(folder=tmp_path)
    assert same(first, again)
    assert again.epochs == first.epochs


def test_more_epochs_go_on_from_the_last(learn: Learn, tmp_path: Path) -> None:
    """With a schedule that does not look at the end, five epochs and three more are eight epochs."""
    settings = QUICK.model_copy(update={"schedule": "constant", "warm_up": 0.0})
    learn(settings, tmp_path)
    longer = settings.model_copy(update={"epochs": 8})
    assert same(learn(longer, tmp_path), learn(longer))


def test_the_time_that_was_used_counts(learn: Learn, tmp_path: Path) -> None:
    """A time limit is of the learning, not of the last sitting."""
    learn(folder=tmp_path, stop_after=2)
    state = checkpoint.load(tmp_path / checkpoint.LAST)
    state["epochs"][-1]["elapsed_s"] = 59.99999
    checkpoint.save(tmp_path / checkpoint.LAST, state)
    fitted = learn(QUICK.model_copy(update={"minutes": 1.0}), tmp_path)
    assert (fitted.stopped, len(fitted.epochs)) == ("minutes", 3)


def test_a_state_of_another_network_is_refused(learn: Learn, tmp_path: Path) -> None:
    """It is told as damage, in one line."""
    learn(folder=tmp_path, stop_after=1)
    state = checkpoint.load(tmp_path / checkpoint.LAST)
    del state["network"]["head.line.bias"]
    checkpoint.save(tmp_path / checkpoint.LAST, state)
    with pytest.raises(RunError, match=r"last\.pt is damaged"):
        learn(folder=tmp_path)


def test_writes_keep_their_distance(tmp_path: Path) -> None:
    """A state that comes soon after a write is held until it is asked for; what is held is a copy."""
    checkpointer = Checkpointer(tmp_path, every_s=60.0)
    state = {"best": {"w": torch.zeros(2)}}
    checkpointer.save(state)
    assert checkpointer.load() is None
    state["best"]["w"] += 1
    checkpointer.flush()
    found = checkpointer.load()
    assert found is not None
    assert found["best"]["w"].tolist() == [0, 0]
    eager = Checkpointer(tmp_path, every_s=0.0)
    eager.save(state)
    assert checkpoint.load(tmp_path / checkpoint.BEST)["w"].tolist() == [1, 1]


def test_nothing_is_run_that_a_state_brings(tmp_path: Path) -> None:
    """A file whose loading would run code is damage."""
    torch.save({"best": Path("x")}, tmp_path / checkpoint.LAST)
    with pytest.raises(RunError, match="is damaged"):
        Checkpointer(tmp_path).load()


def learn_in(folder: Path, on_epoch: Callable[[Epoch, Epoch], None]) -> FitResult:
    """Sixty quick epochs on noise, kept as often as the disk allows."""
    torch.set_num_threads(1)
    times = np.datetime64("2024-01-01", "ns") + np.arange(400) * np.timedelta64(1, "h")
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    series = Series("noise", "0" * 64, ("a", "b"), ("", ""), values, times, 3600.0)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
    architecture = Architecture(features=2, task=TASK, hidden=8)
    settings = QUICK.model_copy(update={"epochs": 60, "patience": 100})
    checkpointer = Checkpointer(folder, every_s=0.005)
    return fit(
        series, split, fit_scaler(series, split.train), architecture, settings, on_epoch, checkpointer=checkpointer
    )


def tell(epoch: Epoch, _best: Epoch) -> None:
    """Say to the process that watches which epoch is done."""
    sys.stdout.write(f"{epoch.number}\n")
    sys.stdout.flush()


def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL at random moments, in the middle of an epoch or of a write: the end is that of a process left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    program = f"import sys; from pathlib import Path; from {__name__} import *; learn_in(Path(sys.argv[1]), tell)"
    last = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(killed)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        ) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first > last  # it did not begin anew
            last = first
            for _ in range(12):
                process.stdout.readline()
            time.sleep(random.uniform(0, 0.03))  # about an epoch and a write
            process.kill()
        assert process.returncode == -signal.SIGKILL
    numbers: list[int] = []
    fitted = learn_in(killed, lambda epoch, _best: numbers.append(epoch.number))
    assert numbers[0] > last
    assert same(fitted, learn_in(whole, lambda _epoch, _best: None))


@pytest.fixture(scope="module")
def toy_csv(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A table with a toy series."""
    series = make_series(400)
    path = tmp_path_factory.mktemp("toy") / "toy.csv"
    write_csv(series, path, series.spans)
    return path


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, toy_csv: Path) -> tuple[Path, list[str], str]:
    """The folder of a `train` that Ctrl-C stopped after its third epoch, its arguments, and what it said."""
    folder = tmp_path_factory.mktemp("stopped")
    arguments = ["--data", str(toy_csv), "--target", "s0", "--horizons", "1,3", "--hidden", "8", "--chunk", "16"]
    arguments += [*LIGHT_OPTIONS, "--epochs", "6", "--models", str(folder / "models"), "--out", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        printed = run_stopped(patch, ["train", *arguments])
    return folder, arguments, printed


def run_stopped(patch: pytest.MonkeyPatch, arguments: list[str]) -> str:
    """Run `train` and press Ctrl-C when it tells of the third epoch; returns what it prints."""
    printed = io.StringIO()

    def press(_progress: FitProgress, epoch: Epoch, _best: Epoch) -> None:
        if epoch.number == 3:
            raise KeyboardInterrupt

    patch.setattr(FitProgress, "show", press)
    with redirect_stdout(printed):
        main(arguments)
    return printed.getvalue()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `train` with a mistake of the person; returns the line that it says."""
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def epochs_of(run: Path) -> list[int]:
    """The epochs in `metrics.jsonl`."""
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ctrl_c_exports_and_prints_how_to_continue(stopped_run: tuple[Path, list[str], str]) -> None:
    """The best network so far is a version, and the last line is the command that resumes."""
    folder, _, printed = stopped_run
    assert (folder / "models" / "toy" / "1" / "model.onnx").is_file()
    assert printed.splitlines()[-1] == f"to go on: tidegate train --resume {folder / 'run'}"
    assert json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["outcome"]["stopped"] == "interrupted"


def test_ctrl_c_in_the_first_epoch_says_how_to_go_on(
    toy_csv: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no network yet, but the run is begun, and can be resumed."""

    def press(_trainer: Trainer, _number: int) -> Epoch:
        raise KeyboardInterrupt

    options = [*LIGHT_OPTIONS, "--epochs", "1", "--models", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(Trainer, "epoch", press)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--data", str(toy_csv), "--target", "s0", "--horizons", "1,3", *options])
    monkeypatch.undo()
    assert caught.value.code == 130
    notes = capsys.readouterr().err.splitlines()[-1]
    assert notes == f"interrupted; to go on: tidegate train --resume {tmp_path / 'run'}"
    main(["train", "--resume", str(tmp_path / "run")])
    assert (tmp_path / "models" / "toy" / "1" / "model.onnx").is_file()


def test_a_full_disk_names_the_file_and_how_to_go_on(
    toy_csv: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In one line; with more room the run goes on."""
    options = [*LIGHT_OPTIONS, "--epochs", "1", "--models", str(tmp_path / "models"), "--out", str(tmp_path / "run")]
    with small_files(20_000), pytest.raises(SystemExit) as caught:
        main(["train", "--data", str(toy_csv), "--target", "s0", "--horizons", "1,3", *options])
    assert caught.value.code == 2
    notes = capsys.readouterr().err.splitlines()[-1]
    assert notes == (
        f"error: {tmp_path / 'run' / 'best.pt'}: File too large; to go on: tidegate train --resume {tmp_path / 'run'}"
    )
    assert not list((tmp_path / "run").glob("*.new"))
    main(["train", "--resume", str(tmp_path / "run")])
    assert (tmp_path / "models" / "toy" / "1" / "model.onnx").is_file()


def test_a_wrong_resume_is_one_line(
    stopped_run: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No run, other settings, other data: each is told with what to do, and the run stays as it is."""
    run = stopped_run[0] / "run"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "run.json: No such file" in refused(capsys, "--resume", str(tmp_path))
    printed = refused(capsys, "--resume", str(run), "--hidden", "16")
    assert "hidden: got 16, but the run was begun with 8, which cannot change: leave --hidden out" in printed
    (tmp_path / "other.csv").write_text("time,s0,s1,s2\n2024-01-01,1,2,3\n2024-01-02,2,2,3\n", encoding="utf-8")
    assert "SHA-256" in refused(capsys, "--resume", str(run), "--data", str(tmp_path / "other.csv"))
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_two_processes_do_not_learn_in_one_folder(
    stopped_run: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told, and neither is harmed."""
    from tidegate.training.learning import run as runs

    run = stopped_run[0] / "run"
    with runs.exclusive(run):
        assert "another process is training" in refused(capsys, "--resume", str(run))


def test_resuming_gives_what_a_whole_training_gives(
    stopped_run: tuple[Path, list[str], str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the folder alone: the same weights, each epoch once in the metrics, a new version; then it is finished."""
    folder, arguments, _ = stopped_run
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)  # a run may be moved
    # A kill may leave epochs in the metrics that no checkpoint knows, and half a line.
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 4}\n{"epo')
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(FitProgress, "show", lambda *_: seen.append(epochs_of(run)))
        main(["train", "--resume", str(run)])
    assert seen == [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]
    main(["train", *arguments[:-1], str(tmp_path / "whole")])
    wanted, got = (torch.load(path / "best.pt") for path in (tmp_path / "whole", run))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert epochs_of(run) == epochs_of(tmp_path / "whole") == [1, 2, 3, 4, 5, 6]
    printed = refused(capsys, "--resume", str(run))
    assert printed == f"error: resume: {run} is finished after epoch 6: all epochs are done; raise --epochs to go on"
    main(["train", "--resume", str(run), "--epochs", "7"])
    assert epochs_of(run) == [1, 2, 3, 4, 5, 6, 7]
    record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["state"], record["fit"]["epochs"], record["outcome"]["epochs"]) == ("done", 7, 7)


def test_a_run_that_is_not_done_is_not_exported(toy_csv: Path, tmp_path: Path, make_facts: Callable[..., Any]) -> None:
    """A killed training is told to go on first."""
    from tidegate.training.learning import run as runs
    from tidegate.training.settings import Request, Source

    request = Request(source=Source(data=str(toy_csv)), name="toy", out=tmp_path)
    runs.save_started(tmp_path, runs.StartedRun(request=request, facts=make_facts(3)))
    with pytest.raises(RunError, match=r"is not done; go on with `tidegate train --resume"):
        runs.load(tmp_path)


def test_a_training_with_a_regression_goes_on_bit_for_bit(make_series: Callable[..., Series], tmp_path: Path) -> None:
    """Epoch 0, the frozen regression and the level are restored too, also while epoch 0 is the best."""
    series = make_series(400)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=3)
    task = TASK.model_copy(update={"links": ("linear",)})
    architecture = Architecture(features=3, task=task, hidden=8, level="on")
    settings = QUICK.model_copy(update={"learning_rate": 1.0})

    def run(folder: Path | None = None, stop_after: int = 0) -> FitResult:
        def interrupt(epoch: Epoch, _best: Epoch) -> None:
            if epoch.number == stop_after:
                raise KeyboardInterrupt

        checkpointer = Checkpointer(folder) if folder else None
        scaler = fit_scaler(series, split.train)
        return fit(series, split, scaler, architecture, settings, interrupt, checkpointer=checkpointer)

    begun = run(tmp_path, stop_after=2)
    assert begun.best.number == 0
    done, whole = run(tmp_path), run()
    assert same(done, whole)
    assert (done.best.number, done.best.score) == (whole.best.number, whole.best.score)
