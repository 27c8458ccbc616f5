"""What several processes of a run share."""

import os
import sys
import textwrap
from pathlib import Path

import pytest

from tests.forked import start
from tests.once import make_once
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S


def test_what_is_made_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A second call returns the same."""
    made = []

    def make() -> bytes:
        made.append(b"%d" % len(made))
        return made[-1]

    assert [make_once(tmp_path_factory, "a number", make) for _ in range(2)] == [b"0", b"0"]
    assert len(made) == 1


def test_processes_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    """The others wait for the one that makes it, wherever in the run's folder they are."""
    script = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from tests.once import make_once
        class Factory:
            getbasetemp = lambda self: Path(sys.argv[1])
        def make():
            while len(list(asking.iterdir())) < 3:  # all want it before it is made
                time.sleep(0.001)
            with open(sys.argv[2], "a") as file:
                file.write("made\\n")
            return str(os.getpid()).encode()
        asking = Path(sys.argv[3])
        (asking / str(os.getpid())).touch()
        print(make_once(Factory(), "a number", make).decode())
        """
    )
    folders = [tmp_path / f"popen-gw{number}" for number in range(3)]
    (asking := tmp_path / "asking").mkdir()
    processes = [
        start(
            [sys.executable, "-c", script, str(folder), str(tmp_path / "log"), str(asking)],
            env=dict(os.environ),
            cwd=ROOT,
        )
        for folder in folders
    ]
    numbers = {process.communicate(timeout=TIMEOUT_S)[0] for process in processes}
    assert len(numbers) == 1
    assert (tmp_path / "log").read_text("utf-8") == "made\n"
