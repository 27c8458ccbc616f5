"""Limits a process to a share of a core, like a container with half a core."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# The default period of the kernel: a process that has used its share waits for the next period.
PERIOD_US = 100_000
# A cpulimit that cannot work ends at once.
TRY_SECONDS = 0.3


class CpuLimitUnavailable(Exception):
    """There is no way to limit a process on this machine. The message says what was tried."""


@contextmanager
def limit_cpu(pid: int, cores: float) -> Iterator[str]:
    """Limits a process and its future children. Yields the method. Raises CpuLimitUnavailable."""
    group = CGROUPS / f"tidegate-bench-{pid}"
    try:
        reason = _limit_by_cgroup(group, pid, cores)
        if not reason:
            yield "cgroup"
            return
        if (program := shutil.which("cpulimit")) is None:
            raise CpuLimitUnavailable(f"{reason}, and there is no cpulimit")
        arguments = [program, f"--pid={pid}", f"--limit={round(100 * cores)}", "--monitor-forks", "--lazy", "--quiet"]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as limiter:
            try:
                limiter.wait(TRY_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise CpuLimitUnavailable(f"{reason}, and cpulimit ended with exit code {limiter.returncode}")
            try:
                yield "cpulimit"
            finally:
                limiter.terminate()
    finally:
        if group.exists():
            for left in (group / "cgroup.procs").read_text("ascii").split():
                (CGROUPS / "cgroup.procs").write_text(left, "ascii")
            group.rmdir()


def _limit_by_cgroup(group: Path, pid: int, cores: float) -> str:
    """Limits the process by a control group. Returns why that is impossible; empty on success."""
    if not (CGROUPS / "cgroup.controllers").exists():
        return f"{CGROUPS} is not a cgroup v2 file system"
    if not os.access(CGROUPS, os.W_OK):
        return f"{CGROUPS} is not writable"
    try:
        group.mkdir()
        (group / "cpu.max").write_text(f"{round(PERIOD_US * cores)} {PERIOD_US}", "ascii")
        (group / "cgroup.procs").write_text(str(pid), "ascii")
    except OSError as error:
        return f"{group} cannot be set up: {error.strerror}"
    return ""
