"""What takes seconds to make is made once in a run of the tests, also where several processes share the run."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run; `factory` is the fixture `tmp_path_factory`."""
    folder = factory.getbasetemp()
    return folder.parent if folder.name.startswith("popen-") else folder  # of a worker of pytest-xdist


@contextmanager
def alone(factory: pytest.TempPathFactory, name: str) -> Iterator[None]:
    """Keeps the other processes of the run out of what has that name."""
    with (shared_folder(factory) / f"{name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, or its process dies
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives; the first process of the run to ask makes it, the others wait and read it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: names what is made, in the whole run.
        make: makes it, always the same.

    """
    path = shared_folder(factory) / f"{name}.made"
    with alone(factory, name):
        if not path.exists():
            path.write_bytes(make())
    return path.read_bytes()
