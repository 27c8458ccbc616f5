"""Holds a process to a part of a core, as a container does that has half of one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# The kernel's own: a process that has used its part waits for the next tenth of a second.
PERIOD_US = 100_000
# A cpulimit that does not know its options, or may not stop the process, ends at once.
TRY_SECONDS = 0.3


class CpuLimitUnavailable(Exception):
    """There is no way here to hold a process; the message says what was tried."""


@contextmanager
def limit_cpu(pid: int, cores: float) -> Iterator[str]:
    """Holds a process and those that it starts from now on; gives by what. Raises NoQuota."""
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
    """Why it cannot be done; empty when it was."""
    if not (CGROUPS / "cgroup.controllers").exists():
        return f"{CGROUPS} is no cgroup v2"
    if not os.access(CGROUPS, os.W_OK):
        return f"{CGROUPS} may not be written"
    try:
        group.mkdir()
        (group / "cpu.max").write_text(f"{round(PERIOD_US * cores)} {PERIOD_US}", "ascii")
        (group / "cgroup.procs").write_text(str(pid), "ascii")
    except OSError as error:
        return f"{group} cannot be set up: {error.strerror}"
    return ""
