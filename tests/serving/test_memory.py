"""How much memory there is, and whether the live streams fit into it."""

import logging
import os
from pathlib import Path

import pytest

from tests.servers import run_server
from tidegate.runtime import server as server_module
from tidegate.runtime.memory import MIB, STREAM_BYTES, MemoryEstimate, memory_limit

V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "167772160\n"}, (160 * MIB, "the container")),
        (
            {"/proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": "max\n", f"{V2}/a/memory.max": "1000000\n"},
            (1_000_000, "the container"),
        ),
        (
            {"/proc/self/cgroup": "4:memory:/docker/x\n0::/\n", f"{V1}/memory.limit_in_bytes": "2000000\n"},
            (2_000_000, "the container"),
        ),
        # The value of version 1 when there is no limit.
        (
            {"/proc/self/cgroup": "4:memory:/\n", f"{V1}/memory.limit_in_bytes": "9223372036854771712\n"},
            (MACHINE, "the machine"),
        ),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n"}, (MACHINE, "the machine")),
        ({}, (MACHINE, "the machine")),
    ],
)
def test_the_memory_is_what_the_container_may_use(files: dict[str, str], expected: tuple[int, str]) -> None:
    """The lowest limit of either version of control groups, else the memory of the machine."""
    assert memory_limit(lambda path: files.get(path, "")) == expected


def test_live_streams_that_fit_are_no_matter() -> None:
    """To the byte."""
    need = MemoryEstimate(rows=(1024,), live_max=10, workers=2, base=MIB)
    enough = 2 * (MIB + 10 * (1024 + STREAM_BYTES))
    assert need.warning(enough, "the machine") == ""
    assert need.warning(enough - 1, "the machine") != ""


def test_live_streams_that_do_not_fit_are_reckoned_up() -> None:
    """The warning has the size of a stream, the limit, the sum, and how many fit: these do fit."""
    need = MemoryEstimate(rows=(6 * 1024,), live_max=16_384, workers=2, base=100 * MIB)
    assert need.warning(512 * MIB, "the container") == (
        "live streams may need more memory than there is: 16384 of 32.0 KiB each, each on its own call, and 100 MiB for"
        " the process, in 2 worker(s), need 1224 MiB; the container has 512 MiB. Set --live-max 4992 or fewer, or add"
        " memory"
    )
    assert not MemoryEstimate(need.rows, 4992, 2, need.base).warning(512 * MIB, "the container")


async def test_a_server_warns_at_the_start(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, not when the system kills the server at its eleven thousandth stream."""
    monkeypatch.setattr(server_module, "memory_limit", lambda: (160 * MIB, "the container"))
    with caplog.at_level(logging.WARNING):
        async with run_server(sum_root):
            pass
    assert "live streams may need more memory than there is: 16384" in caplog.text
    assert "the container has 160 MiB" in caplog.text
