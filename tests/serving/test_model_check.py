"""Models that must not be served, each tried in a process of its own."""

import asyncio
import ctypes
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.checkers import ForkedChecker
from tests.graphs import endless, huge, running_sum, with_weights_in, write_model
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import ContractBroken
from tidegate.runtime import model_check
from tidegate.runtime.model_checker import CheckedModel, ModelChecker, TrialLimits

LIMITS = TrialLimits(batch_max=4, memory_bytes=0, load_s=TIMEOUT_S, step_s=TIMEOUT_S)


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def alive(pid: int) -> bool:
    """Whether there is a process."""
    return Path(f"/proc/{pid}").exists()


async def tried(
    root: Path, *names: str, limits: TrialLimits = LIMITS, checker: type[ModelChecker] = ForkedChecker
) -> list[CheckedModel | str]:
    """What comes of each model, side by side: what is known of it, or why it is refused."""
    one = checker()

    async def try_one(name: str) -> CheckedModel | str:
        try:
            return await one.check(name, "1", root / name / "1", 1000, limits)
        except ContractBroken as error:
            return str(error)

    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*map(try_one, names))
    finally:
        await one.close()


async def test_a_sound_model_is_described(sum_root: Path) -> None:
    """With the fingerprint that every process must find. In a process that loads the libraries itself."""
    (model,) = await tried(sum_root, "toy", checker=ModelChecker)
    assert isinstance(model, CheckedModel)
    assert (model.title, model.folder, model.warnings) == ("toy/1", str(sum_root / "toy" / "1"), [])
    assert model.check["sizes"] == [1, 2, 3, 4]
    assert len(model.fingerprint) == 64


async def test_an_endless_timestep_is_ended(tmp_path: Path) -> None:
    """Others are tried meanwhile, and afterwards."""
    write_model(tmp_path, endless(), name="endless")
    write_model(tmp_path, running_sum())
    limits = TrialLimits(4, 0, TIMEOUT_S, 0.5)
    words, sound = await tried(tmp_path, "endless", "toy", limits=limits)
    assert words == ("endless/1: it could not be run for one timestep within 0.5 s; --step-timeout allows more")
    assert isinstance(sound, CheckedModel)


async def test_a_graph_that_takes_too_long_to_check_is_ended(tmp_path: Path) -> None:
    """Its timesteps may be short where the values are small."""
    write_model(tmp_path, endless(above=0.9), name="endless")
    limits = TrialLimits(64, 0, 1.0, TIMEOUT_S)
    (words,) = await tried(tmp_path, "endless", limits=limits)
    assert words == "endless/1: it could not be checked within 1 s; --load-timeout allows more"


async def test_a_graph_that_makes_gigabytes_is_ended(tmp_path: Path) -> None:
    """A few hundred bytes would make 1.6 GB."""
    assert len(huge()) < 500
    write_model(tmp_path, huge(), name="huge")
    (words,) = await tried(tmp_path, "huge")
    assert isinstance(words, str)
    assert words.startswith("huge/1: it needs more than 1024 MiB of memory; --model-memory-max allows more")


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (b"", "the file is empty"),
        (np.random.default_rng(0).bytes(5000), "onnxruntime cannot load the graph"),
        (
            with_weights_in(running_sum(), "/etc/passwd"),
            "weights in '/etc/passwd', expected the name of a file in the folder of the model",
        ),
        (
            with_weights_in(running_sum(), "../../good/1/model.onnx"),
            "expected the name of a file in the folder of the model",
        ),
        (with_weights_in(running_sum(), "weights.bin"), "weights in 'weights.bin', which cannot be read"),
    ],
    ids=["empty", "random", "absolute", "above", "absent"],
)
async def test_a_file_that_is_no_model_is_refused(tmp_path: Path, graph: bytes, words: str) -> None:
    """With the reason."""
    write_model(tmp_path, graph)
    (refused,) = await tried(tmp_path, "toy")
    assert isinstance(refused, str)
    assert words in refused


def test_a_crash_is_told(sum_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the signal and by what was done: the process that tries the next one lives on."""

    def crash(*_: object) -> None:
        ctypes.string_at(0)

    monkeypatch.setattr(model_check, "load_model", crash)
    request = {
        "id": 1,
        "name": "toy",
        "version": "1",
        "folder": str(sum_root / "toy" / "1"),
        "batch_max": 4,
        "device": "cpu",
    }
    trial = model_check.Trial({**request, "memory_bytes": 1 << 30, "load_s": TIMEOUT_S, "step_s": TIMEOUT_S})
    while (answer := trial.read()) is None:
        pass
    assert answer == {
        "refused": "it ended its process with SIGSEGV when it was loaded, with 1024 MiB of memory allowed"
    }


async def test_the_process_ends_with_the_server_and_ends_what_it_tries(tmp_path: Path) -> None:
    """A killed server leaves nothing behind that computes."""
    root = write_model(tmp_path, endless())
    checker = ModelChecker()
    trying = asyncio.create_task(checker.check("toy", "1", root / "toy" / "1", 1000, LIMITS))
    pid = checker._wait.__self__.pid  # type: ignore[attr-defined]
    await eventually(lambda: bool(children(pid)), "the trial")
    (child,) = children(pid)
    checker._writer.transport.abort()
    await asyncio.to_thread(checker._wait)
    assert not alive(child)
    with pytest.raises(ContractBroken, match="the process for it has ended"):
        await trying


async def test_the_end_of_the_process_refuses_what_it_tried(tmp_path: Path) -> None:
    """At once, although what it tried still runs."""
    root = write_model(tmp_path, endless())
    checker = ModelChecker()
    trying = asyncio.create_task(checker.check("toy", "1", root / "toy" / "1", 1000, LIMITS))
    pid = checker._wait.__self__.pid  # type: ignore[attr-defined]
    await eventually(lambda: bool(children(pid)), "the trial")
    (child,) = children(pid)
    os.kill(pid, signal.SIGKILL)
    try:
        with pytest.raises(ContractBroken, match="the process for it has ended"):
            await asyncio.wait_for(trying, TIMEOUT_S)
    finally:
        os.kill(child, signal.SIGKILL)
        await checker.close()
