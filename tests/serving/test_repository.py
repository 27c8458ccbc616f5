"""Loading models concurrently."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.graphs import running_sum, write_model
from tests.timeouts import TIMEOUT_S
from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model
from tidegate.core.self_check import SelfCheck, check_model
from tidegate.runtime import repository
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.repository import Limits, load_repository

LIMITS = Limits(live_max=4, answers=2, batch_max=4, queue_max=4)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of four versions."""
    for version in "1234":
        write_model(tmp_path, running_sum(), version=version)
    return tmp_path


def test_models_are_checked_side_by_side(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at a time as there are cores: two that wait for each other both finish."""
    inner, meeting = check_model, threading.Barrier(2, timeout=TIMEOUT_S)

    def check(model: Model, *arguments: Any) -> SelfCheck:
        meeting.wait()
        return inner(model, *arguments)

    monkeypatch.setattr(repository, "check_model", check)
    monkeypatch.setattr(repository, "usable_cores", lambda: 2)
    assert len(list(load_repository(many, LIMITS, Metrics({})))) == 4


def test_models_are_listed_in_the_order_of_their_paths(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever is ready first."""
    inner, done = check_model, {version: threading.Event() for version in "12345"}
    done["5"].set()

    def check(model: Model, *arguments: Any) -> SelfCheck:
        version = model.spec.version
        assert done[str(int(version) + 1)].wait(TIMEOUT_S)  # the last one is ready first
        done[version].set()
        return inner(model, *arguments)

    monkeypatch.setattr(repository, "check_model", check)
    monkeypatch.setattr(repository, "usable_cores", lambda: 4)
    caplog.set_level(logging.INFO)
    load_repository(many, LIMITS, Metrics({}))
    loaded = [record.getMessage().split()[1] for record in caplog.records if "loaded" in record.getMessage()]
    assert loaded == ["toy/1", "toy/2", "toy/3", "toy/4"]


def test_the_first_bad_model_is_the_one_that_is_named(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their paths, even if a later one was found first."""
    write_model(many, b"nonsense", version="0")
    write_model(many, b"nonsense", version="9")
    monkeypatch.setattr(repository, "usable_cores", lambda: 4)
    with pytest.raises(ContractBroken, match="toy/0"):
        load_repository(many, LIMITS, Metrics({}))


def test_a_version_that_begins_with_a_zero_is_refused(tmp_path: Path) -> None:
    """1 and 01 are one version, and two folders."""
    write_model(tmp_path, running_sum(), version="1")
    write_model(tmp_path, running_sum(), version="01")
    with pytest.raises(ContractBroken, match="version '01' begins with a zero, expected toy/1"):
        load_repository(tmp_path, LIMITS, Metrics({}))
