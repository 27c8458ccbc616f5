"""Backtests: what each fold may see, and what comes out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.training.light import LIGHT_OPTIONS
from tidegate.training import errors, pipeline
from tidegate.training.backtest import Backtest, Fold, mean_and_std, rolling_splits
from tidegate.training.cli import scoreboard, tables
from tidegate.training.cli.app import main
from tidegate.training.data.prepare import prepare
from tidegate.training.data.series import Group, Series
from tidegate.training.data.write import write_csv
from tidegate.training.judging.scores import ClassError, ClassScores, Scores
from tidegate.training.settings import Fit, Request, Rolling, Shape, Source

QUICK = ["--target", "s0", "--epochs", "3", "--hidden", "4", "--horizons", "1,3", "--chunk", "16", "--burn-in", "4"]
QUICK += LIGHT_OPTIONS


def test_the_past_grows_and_the_blocks_follow_one_another(make_series: Callable[..., Series]) -> None:
    """Every block begins where the past ends, and the blocks cover the end of the rows without a hole."""
    splits = rolling_splits(make_series(1000), Rolling(folds=4, start=0.6), validation=0.25)
    assert [split.test for split in splits] == [((600, 700),), ((700, 800),), ((800, 900),), ((900, 1000),)]
    assert [split.train for split in splits] == [((0, 450),), ((0, 525),), ((0, 600),), ((0, 675),)]
    assert all(split.train[0][1] == split.validation[0][0] for split in splits)
    assert all(split.validation[0][1] == split.test[0][0] for split in splits)


def test_a_window_forgets(make_series: Callable[..., Series]) -> None:
    """The past has so many rows, or as many as there are."""
    splits = rolling_splits(make_series(1000), Rolling(folds=2, start=0.5, window=600), validation=0.2)
    assert [(split.train, split.validation) for split in splits] == [
        (((0, 400),), ((400, 500),)),
        (((150, 630),), ((630, 750),)),
    ]


def test_every_group_is_cut_at_its_own_moments(make_series: Callable[..., Series]) -> None:
    """Each in the same shares of its rows."""
    series = replace(make_series(300), groups=(Group("a", 0, 100), Group("b", 100, 300)))
    first, _ = rolling_splits(series, Rolling(folds=2, start=0.5), validation=0.2)
    assert first.train == ((0, 40), (100, 180))
    assert first.validation == ((40, 50), (180, 200))
    assert first.test == ((50, 75), (200, 250))


def test_groups_that_stay_whole_have_no_origin(make_series: Callable[..., Series]) -> None:
    """A backtest goes forward in time, so that is refused, with what to do."""
    series = replace(make_series(300), groups=(Group("a", 0, 100, "ann"), Group("b", 100, 300, "bob")))
    with pytest.raises(errors.SettingsError, match="--split-by ''"):
        rolling_splits(series, Rolling(), validation=0.2)


def test_nothing_after_the_origin_is_seen(make_series: Callable[..., Series], tmp_path: Path) -> None:
    """Whatever the rows after it hold, the network of a fold is the same, bit for bit, its scaler included."""
    series = make_series(500)
    other = replace(series, values=series.values.copy())
    split = rolling_splits(series, Rolling(folds=2), validation=0.2)[0]
    other.values[250:] = 1e4
    weights = []
    for place, each in enumerate((series, other)):
        request = Request(
            source=Source(data="toy.csv"),
            target=("s0",),
            horizons=(1, 3),
            shape=Shape(hidden=4),
            fit=Fit(epochs=2, chunk=16, burn_in=4),
            name="toy",
            out=tmp_path / str(place),
        )
        (tmp_path / str(place)).mkdir()
        _, network, _ = pipeline._train(
            request, prepare(request, each, lambda _: None, split), lambda *_: None, lambda _: None
        )
        weights.append(network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A folder with what a backtest of two folds left."""
    folder = tmp_path_factory.mktemp("backtest")
    series = make_series(400)
    write_csv(series, folder / "toy.csv", series.spans)
    arguments = ["--data", str(folder / "toy.csv"), "--out", str(folder / "runs"), "--json", str(folder / "b.json")]
    main(["backtest", *arguments, "--folds", "2", *QUICK])
    return folder


def test_each_fold_has_scores_and_a_run(result: Path) -> None:
    """On its own block, beside all baselines, and no version is written."""
    found = json.loads((result / "b.json").read_text(encoding="utf-8"))
    assert [fold["scores"]["rows"] for fold in found["folds"]] == [100, 100]
    assert [fold["training_rows"] + fold["validation_rows"] for fold in found["folds"]] == [200, 300]
    assert all(row["ridge"] for fold in found["folds"] for row in fold["scores"]["table"])
    assert {path.name for path in (result / "runs").iterdir()} == {"fold-1", "fold-2"}
    assert (result / "runs" / "fold-2" / "run.json").is_file()
    assert not (result / "models").exists()


def test_mean_and_spread_are_those_of_the_folds(result: Path) -> None:
    """The standard deviation is that of a sample."""
    found = json.loads((result / "b.json").read_text(encoding="utf-8"))
    for place, line in enumerate(found["summary"]):
        maes = [fold["scores"]["table"][place]["model"]["mae"] for fold in found["folds"]]
        assert line["mean"] == pytest.approx(np.mean(maes))
        assert line["std"] == pytest.approx(abs(maes[0] - maes[1]) / np.sqrt(2))
    assert mean_and_std((1.0, 3.0)) == (2.0, pytest.approx(np.sqrt(2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version", "3"], "version: a backtest writes no model"),
        (["--folds", "1"], "folds: got '1', expected: greater than or equal to 2"),
        (["--window", "20", "--validation-share", "0.01"], "the validation part has 0"),
    ],
)
def test_invalid_settings_are_reported_before_training(
    result: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """In one line, with exit code 2."""
    out = result / "refused"
    with pytest.raises(SystemExit) as caught:
        main(["backtest", "--data", str(result / "toy.csv"), "--out", str(out), *QUICK, *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_classes_are_summed_up_too() -> None:
    """By their wrong guesses and their cross-entropy, each against the best baseline, in the table and the verdict."""

    def fold(number: int, accuracy: float, entropy: float) -> Fold:
        mine = ClassError(accuracy, 0.5, entropy, 1.0, accuracy, entropy)
        baseline = replace(mine, accuracy=0.6, cross_entropy=1.0)
        part = ClassScores(("a", "b"), 10, 2, mine, baseline, None, ((5, 0), (0, 5)), ())
        return Fold(number, "2024-01-01T00:00:00", 80, 20, Scores("watch", rows=10, classification=part))

    result = Backtest("watch", None, (fold(1, 0.9, 0.5), fold(2, 0.5, 0.75)))
    wrong, entropy = result.lines
    assert wrong.values == pytest.approx((0.1, 0.5))
    assert wrong.skills == pytest.approx((0.75, -0.25))
    assert entropy.skills == pytest.approx((0.5, 0.25))
    assert (wrong.wins, entropy.wins, result.wins) == (1, 1, False)
    assert scoreboard.backtest_verdict(result) == "The model does NOT beat every baseline in fold 2 of 2."
    console = Console(width=tables.WIDTH)
    with console.capture() as caught:
        console.print(scoreboard.backtest_table(result))
    assert "25.0 ± 70.7 %" in caught.get()
