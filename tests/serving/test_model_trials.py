"""A model that this machine has tried before is not tried again."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkers import ForkedChecker
from tests.graphs import lstm, running_sum, write_model
from tests.servers import run_server
from tests.timeouts import TIMEOUT_S
from tidegate.core.errors import ContractBroken
from tidegate.runtime.model_checker import CheckedModel, ModelChecker, TrialLimits
from tidegate.runtime.model_trials import FILE, ModelTrials

LIMITS = TrialLimits(batch_max=4, memory_bytes=0, load_s=TIMEOUT_S, step_s=TIMEOUT_S)


class Trials:
    """The trials of servers that start one after the other with the same folder for data."""

    def __init__(self, data: Path) -> None:
        self.path = data / FILE
        self.processes = 0  # that tried models
        self.checker: type[ModelChecker] = ForkedChecker

    def _start(self) -> ModelChecker:
        self.processes += 1
        return self.checker()

    async def check(self, root: Path, limits: TrialLimits = LIMITS) -> CheckedModel:
        """Checks the model of a server that starts and ends."""
        trials = ModelTrials(self._start, limits, self.path)
        try:
            return await trials.check("toy", "1", root / "toy" / "1", 1000)
        finally:
            await trials.end()


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    """None was done."""
    (tmp_path / "data").mkdir()
    return Trials(tmp_path / "data")


async def test_what_was_found_is_found_again_without_a_trial(trials: Trials, sum_root: Path) -> None:
    """The second server starts no process, and knows the same."""
    first = await trials.check(sum_root)
    assert await trials.check(sum_root) == first
    assert trials.processes == 1


async def test_other_files_are_tried(trials: Trials, tmp_path: Path) -> None:
    """The same name and version with another graph is another model."""
    first = await trials.check(write_model(tmp_path / "one", lstm(hidden=4, seed=1)))
    other = await trials.check(write_model(tmp_path / "two", lstm(hidden=4, seed=2)))
    assert other.fingerprint != first.fingerprint
    assert trials.processes == 2


async def test_with_other_limits_it_is_tried(trials: Trials, sum_root: Path) -> None:
    """A larger batch was not tried before."""
    await trials.check(sum_root)
    assert (await trials.check(sum_root, replace(LIMITS, batch_max=6))).check["sizes"] == [1, 2, 3, 4, 5, 6]


async def test_a_model_with_links_is_always_tried(trials: Trials, tmp_path: Path, sum_root: Path) -> None:
    """What a link leads to may change without a change of the model's own files."""
    folder = tmp_path / "linked" / "toy" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(sum_root / "toy" / "1" / "model.onnx")
    await trials.check(tmp_path / "linked")
    await trials.check(tmp_path / "linked")
    assert trials.processes == 2


async def test_a_refused_model_is_tried_again(trials: Trials, tmp_path: Path) -> None:
    """What refused it may be gone."""
    root = write_model(tmp_path / "broken", b"no graph")
    for _ in range(2):
        with pytest.raises(ContractBroken):
            await trials.check(root)
    assert trials.processes == 2


class BusyChecker(ForkedChecker):
    """Its machine is too busy to try each batch size."""

    async def check(self, *arguments: Any) -> CheckedModel:
        """Leaves a size out."""
        model = await super().check(*arguments)
        return replace(model, check={**model.check, "sizes": [1, 2, 4]})


async def test_a_trial_that_ran_out_of_time_is_done_again(trials: Trials, sum_root: Path) -> None:
    """The next one may find that the model runs batches of more sizes."""
    trials.checker = BusyChecker
    assert (await trials.check(sum_root)).check["sizes"] == [1, 2, 4]
    trials.checker = ForkedChecker
    assert (await trials.check(sum_root)).check["sizes"] == [1, 2, 3, 4]


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 1}', '{"key": {"sizes": "1"}}'])
async def test_a_damaged_file_costs_a_trial(
    trials: Trials, sum_root: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """The log says so, and the next server has a good one again."""
    first = await trials.check(sum_root)
    trials.path.write_text(content)
    with caplog.at_level(logging.WARNING, "tidegate.models"):
        assert await trials.check(sum_root) == first
    assert "is of no use" in caplog.text
    await trials.check(sum_root)
    assert trials.processes == 2


async def test_nothing_is_written_where_no_folder_is(tmp_path: Path, sum_root: Path) -> None:
    """A server makes its folder once it has a model, and only if it keeps streams there."""
    await Trials(tmp_path / "data").check(sum_root)
    assert not (tmp_path / "data").exists()


async def test_a_server_that_starts_again_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps what was found beside its streams."""
    root = write_model(tmp_path / "models", running_sum())
    async with run_server(root, state="", data_dir=tmp_path / "data"):
        pass
    assert (tmp_path / "data" / FILE).exists()
    monkeypatch.setattr(ForkedChecker, "_start", None)
    async with run_server(root, state="", data_dir=tmp_path / "data") as server:
        assert [each.spec.title for each in server.repository] == ["toy/1"]
