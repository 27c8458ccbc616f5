"""Makes expensive things once in a test run, even if several processes share the run."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run. `factory` is the fixture `tmp_path_factory`."""
    folder = factory.getbasetemp()
    return folder.parent if folder.name.startswith("popen-") else folder  # the folder of a pytest-xdist worker


@contextmanager
def process_lock(factory: pytest.TempPathFactory, name: str) -> Iterator[None]:
    """A lock with this name between the processes of the run."""
    with (shared_folder(factory) / f"{name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or its process dies
        yield


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], bytes]) -> bytes:
    """The result of `make`. The first process that asks makes it; the others wait and read it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: a name for it, unique in the run.
        make: makes it, always with the same result.

    """
    path = shared_folder(factory) / f"{name}.made"
    with process_lock(factory, name):
        if not path.exists():
            path.write_bytes(make())
    return path.read_bytes()
