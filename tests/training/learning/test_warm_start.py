"""A training that begins with the weights of an earlier one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tidegate.training.cli.app import main
from tidegate.training.data.series import Series
from tidegate.training.data.write import write_csv

# The model that they go on from takes seconds to train.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A folder with a table, the table some days later, and a model of the first one."""
    folder = tmp_path_factory.mktemp("warm")
    series = make_series(600)
    write_csv(series, folder / "old.csv", ((0, 500),))
    write_csv(series, folder / "toy.csv", series.spans)
    settings = ["--target", "s1", "--horizons", "1,3", "--hidden", "8", "--epochs", "4"]
    main(["train", "--data", str(folder / "old.csv"), "--name", "toy", *settings, *places(folder, "old")])
    return folder


def places(folder: Path, out: str) -> list[str]:
    """Where a training puts its model and its run."""
    return ["--models", str(folder / "models"), "--out", str(folder / out)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `train` with a mistake of the user; returns its line."""
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_warm_start_goes_on_from_the_weights(work: Path) -> None:
    """Columns, horizons and network are those of the model; with next to no learning rate its weights are its own.

    Monitors are calibrated anew, on the new validation part.
    """
    start = ["train", "--warm-start", str(work / "models/toy/1"), "--data", str(work / "toy.csv")]
    main([*start, "--epochs", "1", "--learning-rate", "1e-12", *places(work, "warm")])
    card = json.loads((work / "models/toy/2/card.json").read_text(encoding="utf-8"))
    assert card["data"]["rows"] == 600
    assert [row["horizon"] for row in card["scores"]["table"]] == [1, 3]
    assert {row["target"] for row in card["scores"]["table"]} == {"s1"}
    old, new = (torch.load(work / run / "best.pt") for run in ("old", "warm"))
    for name, weights in old.items():
        if name.startswith("monitors."):
            continue
        torch.testing.assert_close(new[name], weights, atol=1e-6, rtol=1e-6)


def test_a_run_folder_does_as_well(work: Path) -> None:
    """And the model may have another name."""
    start = ["train", "--warm-start", str(work / "old"), "--data", str(work / "toy.csv")]
    main([*start, "--epochs", "1", "--name", "again", *places(work, "again")])
    assert (work / "models/again/1/model.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hidden", "16"], "hidden: got 16, but the run was begun with 8, which cannot change"),
        (["--target", "s2"], "target: got ('s2',), but the run was begun with ('s1',)"),
        (["--train-share", "0.4"], "the model has learned from 155 rows of the held-out part"),
    ],
)
def test_what_cannot_go_on_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    """Another network, and held-out rows that the model has learned from."""
    data = ["--warm-start", str(work / "models/toy/1"), "--data", str(work / "toy.csv")]
    if "--train-share" in options:
        options = ["--train-share", "0.4", "--validation-share", "0.05"]
    assert words in refused(capsys, *data, *options, *places(work, "refused"))


def test_a_model_without_its_run_is_refused(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The graph alone does not hold what a training needs."""
    (tmp_path / "card.json").write_text('{"run": "gone"}', encoding="utf-8")
    error = refused(capsys, "--warm-start", str(tmp_path), "--data", str(work / "toy.csv"))
    assert "was exported from gone, which is not there; name the folder of its run" in error
