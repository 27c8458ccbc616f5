"""The default number of workers."""

import os
from collections.abc import Mapping

import pytest

from tidegate.runtime import cores
from tidegate.runtime.cores import quota_cores, usable_cores

V2 = "/sys/fs/cgroup"


def reader(files: Mapping[str, str]) -> cores.Read:
    """Reads only the given files."""
    return lambda path: files.get(path, "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),  # no control groups at all
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "250000 100000\n"}, 2.5),
        ({"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        # a service of systemd: its own group and its parents
        (
            {
                "/proc/self/cgroup": "0::/system.slice/a.service\n",
                f"{V2}/system.slice/a.service/cpu.max": "300000 100000",
            },
            3.0,
        ),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000\n",
                f"{V2}/a/cpu.max": "150000 100000\n",
                f"{V2}/cpu.max": "400000 100000\n",
            },
            1.5,
        ),
        # version 1, inside a container: the path is the host's, and the container's own group is mounted
        (
            {
                "/proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
                f"{V2}/cpu/cpu.cfs_quota_us": "200000\n",
                f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/a\n0::/\n",
                f"{V2}/cpu,cpuacct/a/cpu.cfs_quota_us": "700000\n",
                f"{V2}/cpu,cpuacct/a/cpu.cfs_period_us": "200000\n",
            },
            3.5,
        ),
        (
            {
                "/proc/self/cgroup": "1:cpu:/\n",
                f"{V2}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"/proc/self/cgroup": "2:cpuset:/\n1:cpuacct:/\n", f"{V2}/cpu/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_the_tightest_bound_of_the_control_groups_counts(files: dict[str, str], expected: float | None) -> None:
    """The lowest quota of the own group and its parents, in version 2 and version 1."""
    assert quota_cores(reader(files)) == expected


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"),
    [(4, "max", 4), (4, "250000", 2), (4, "900000", 4), (4, "50000", 1), (1, "max", 1)],
)
def test_a_part_of_a_core_is_none_and_one_is_the_least(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: str, expected: int
) -> None:
    """Limited by affinity and quota."""
    files = {"/proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": f"{quota} 100000\n"}
    monkeypatch.setattr(cores, "read_file", reader(files))
    monkeypatch.setattr(cores, "_allowed_cores", lambda: allowed)
    assert usable_cores() == expected


def test_cores_that_this_process_may_not_run_on_do_not_count() -> None:
    """As `taskset` and Docker's --cpuset-cpus set it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
