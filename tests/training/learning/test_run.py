"""Run folders: what a training leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tidegate.training.errors import RunError
from tidegate.training.learning import run
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network
from tidegate.training.settings import Fit, Source

OUTCOME = run.Outcome(epochs=3, best_epoch=2, best_score=0.5, seconds=1.0, stopped="epochs", threads=1, torch="2")


@pytest.fixture
def record(make_network: Callable[..., Network], make_facts: Callable[[int], DataFacts]) -> tuple[run.Run, Network]:
    """A run and its network."""
    network = make_network(layers=2)
    made = run.Run(
        source=Source(data="toy.csv", exclude=("note",)),
        facts=make_facts(3),
        architecture=network.architecture,
        fit=Fit(),
        outcome=OUTCOME,
    )
    return made, network


def test_a_saved_run_comes_back(record: tuple[run.Run, Network], tmp_path: Path) -> None:
    """Settings and facts are equal, and the network computes the same bits."""
    made, network = record
    run.save(tmp_path / "run", made, network)
    again, loaded = run.load(tmp_path / "run")
    assert again == made
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        wanted, _ = network.sequence(x, network.initial_state(2))
        got, _ = loaded.sequence(x, loaded.initial_state(2))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_every_epoch_is_a_line(tmp_path: Path) -> None:
    """`metrics.jsonl` has one JSON object an epoch."""
    for number in (1, 2):
        run.append_metrics(tmp_path, Epoch(number, 0.9, 0.8, 1e-3, 2.5, 0.5))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_a_run_is_never_written_over(record: tuple[run.Run, Network], tmp_path: Path) -> None:
    """A folder that holds a run is refused."""
    run.save(tmp_path, *record)
    with pytest.raises(RunError, match=r"holds a run already.*--out"):
        run.open_folder(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """The message says what is missing and who writes it."""
    with pytest.raises(RunError, match=r"run\.json: No such file.*tidegate train"):
        run.load(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "best.pt"])
def test_a_damaged_run_is_refused(record: tuple[run.Run, Network], tmp_path: Path, name: str) -> None:
    """Bytes that are no run are told in one line."""
    run.save(tmp_path, *record)
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(RunError, match="is damaged"):
        run.load(tmp_path)


def test_ranges_are_written_as_people_wrote_them(make_facts: Callable[[int], DataFacts]) -> None:
    """The range of a feature has the few digits of float32, not the many of float64."""
    assert all(len(str(value)) <= 11 for value in make_facts(3).low)
