"""What takes seconds to make is made once in a run of the tests, also where several processes share the run."""

import fcntl
from collections.abc import Callable

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives; the first process of the run to ask makes it, the others wait and read it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: names what is made, in the whole run.
        make: makes it, always the same.

    """
    folder = factory.getbasetemp()
    if folder.name.startswith("popen-"):  # a worker's of pytest-xdist, in that of the run
        folder = folder.parent
    path = folder / f"made-{name}"
    with path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, or its process dies
        if not path.exists():
            content = make()
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.rename(path)
    return path.read_bytes()
