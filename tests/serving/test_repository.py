"""Which versions are served at the start, and which of them a stream gets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.checkers import ForkedChecker
from tests.graphs import endless, lstm, running_sum, write_model
from tests.serving.test_model_check import children
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import ContractBroken, ModelNotFound, ModelNotNamed
from tidegate.core.self_check import SelfCheck
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import ModelChecker, TrialLimits
from tidegate.runtime.model_load import load_model
from tidegate.runtime.repository import Limits, ModelPhase, Repository, ServedModel, make_served


@asynccontextmanager
async def catalog_of(
    root: Path, *chosen: str, checker: type[ModelChecker] = ForkedChecker, step_s: float = TIMEOUT_S
) -> AsyncIterator[ModelCatalog]:
    """A catalog that has not started."""
    limits = TrialLimits(batch_max=4, memory_bytes=0, load_s=TIMEOUT_S, step_s=step_s)
    catalog = ModelCatalog(root, chosen, checker, limits, bytes_max=1 << 20, poll_s=0, data_dir=root)
    try:
        yield catalog
    finally:
        await catalog.close()


def titles(catalog: ModelCatalog) -> list[str]:
    """What is to be served."""
    return [target.model.title for target in catalog.versions.targets]


# At the start


async def test_versions_are_served_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Whichever is ready first."""
    for name, version in (("toy", "2"), ("toy", "10"), ("lake", "1")):
        write_model(tmp_path, running_sum(), name, version)
    async with catalog_of(tmp_path, "lake", "toy/2", "toy/10") as catalog:
        await catalog.start()
        assert titles(catalog) == ["lake/1", "toy/10", "toy/2"]


async def test_all_bad_models_are_named(tmp_path: Path) -> None:
    """Whoever mends them needs one start, not one for each."""
    graphs = {"1": running_sum(), "2": b"nonsense", "3": endless(), "04": running_sum()}
    for version, graph in graphs.items():
        write_model(tmp_path, graph, version=version)
    async with catalog_of(tmp_path, *(f"toy/{version}" for version in graphs), step_s=0.3) as catalog:
        with pytest.raises(ContractBroken) as caught:
            await catalog.start()
        message = str(caught.value)
        assert message.startswith("3 models cannot be served: ")
        for words in ("toy/2: onnxruntime cannot load", "toy/3: it could not be run", "begins with a zero"):
            assert words in message
        assert "\n" not in message
        assert titles(catalog) == []


async def test_a_single_bad_model_is_named_as_it_is(tmp_path: Path) -> None:
    """Without a count."""
    write_model(tmp_path, b"nonsense")
    async with catalog_of(tmp_path) as catalog:
        with pytest.raises(ContractBroken, match=r"^toy/1: onnxruntime cannot load"):
            await catalog.start()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (("toy/7",), "--load names toy/7, which is not there"),
        (("toy", "pond"), "--load names pond, which is not there"),
    ],
)
async def test_what_was_chosen_must_be_there(sum_root: Path, chosen: tuple[str, ...], words: str) -> None:
    """A mistyped name would serve less than was asked for."""
    async with catalog_of(sum_root, *chosen) as catalog:
        with pytest.raises(ContractBroken, match=words):
            await catalog.start()


@pytest.mark.parametrize("folder", ["empty", "absent"])
async def test_a_folder_without_a_model_is_refused(tmp_path: Path, folder: str) -> None:
    """With what is expected in it."""
    (tmp_path / "empty").mkdir()
    async with catalog_of(tmp_path / folder) as catalog:
        with pytest.raises(ContractBroken, match=r"no model found, expected <name>/<version>/model\.onnx below it"):
            await catalog.start()


@pytest.mark.skipif(usable_cores() < 2, reason="as many at a time as there are cores")
async def test_models_are_tried_side_by_side(tmp_path: Path) -> None:
    """As many at a time as there are cores: two that do not end run at once."""
    for name in "ab":
        write_model(tmp_path, endless(), name)
    async with catalog_of(tmp_path, checker=ModelChecker, step_s=5.0) as catalog:
        pid = catalog._trials._checker._wait.__self__.pid  # type: ignore[attr-defined]
        starting = asyncio.create_task(catalog.start())
        await eventually(lambda: len(children(pid)) == 2, "the second trial")
        with pytest.raises(ContractBroken, match="2 models cannot be served"):
            await starting


# For a stream


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Two versions of one model, both served."""
    return Repository([loaded(tmp_path, "toy", "9"), loaded(tmp_path, "toy", "10")])


def loaded(root: Path, name: str, version: str, phase: ModelPhase = ModelPhase.SERVING) -> ServedModel:
    """A version, loaded."""
    write_model(root, lstm(2) if name != "toy" else running_sum(), name, version)
    served = make_served(load_model(name, version, root / name / version), SelfCheck((1, 2)), Limits(4, 2, 2, 4))
    served.phase = phase
    return served


def test_the_newest_version_is_the_default(repository: Repository) -> None:
    """By its number, not by its letters; of those that are served."""
    newest = repository.find("", "")
    assert newest.spec.title == "toy/10"
    newest.phase = ModelPhase.RETIRING
    assert repository.find("", "").spec.title == repository.find("toy", "").spec.title == "toy/9"


def test_a_retiring_version_is_found_for_streams_that_have_begun(repository: Repository) -> None:
    """Not for others."""
    repository.find("toy", "9").phase = ModelPhase.RETIRING
    assert repository.find("toy", "9", begun=True).spec.title == "toy/9"
    with pytest.raises(ModelNotFound, match=r"served are toy/10$"):
        repository.find("toy", "9")


def test_a_version_that_is_being_loaded_by_all_is_not_served_yet(repository: Repository, tmp_path: Path) -> None:
    """Neither by its number nor as the newest, and callers are not told of it."""
    repository.add(loaded(tmp_path, "toy", "11", ModelPhase.LOADED))
    assert repository.find("toy", "").spec.version == "10"
    with pytest.raises(ModelNotFound):
        repository.find("toy", "11")
    assert [served.spec.version for served in repository.shown] == ["10", "9"]


def test_a_name_is_needed_when_several_are_served(repository: Repository, tmp_path: Path) -> None:
    """Models that are not served do not count."""
    other = loaded(tmp_path, "lake", "1", ModelPhase.LOADED)
    repository.add(other)
    assert repository.find("", "").spec.name == "toy"
    other.phase = ModelPhase.SERVING
    with pytest.raises(ModelNotNamed):
        repository.find("", "")


def test_an_iteration_sees_the_models_of_its_start(repository: Repository) -> None:
    """Storing a round of checkpoints waits between models, and one may be unloaded meanwhile."""
    seen = []
    for served in repository:
        if not seen:
            repository.remove(repository.find("toy", "9"))
        seen.append(served.spec.version)
    assert seen == ["10", "9"]
    assert [served.spec.version for served in repository] == ["10"]
