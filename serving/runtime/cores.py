"""How many cores this process may use: those in its affinity mask, limited by its container's CPU quota."""

import os
import sys
from pathlib import PurePosixPath

from tidegate.runtime.cgroups import Read, groups, read_file


def usable_cores() -> int:
    """The cores that this process may use, rounded down, at least 1."""
    quota = quota_cores(read_file)
    allowed = _allowed_cores()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def quota_cores(read: Read) -> float | None:
    """The CPU quota of this process's control groups, in cores; None when there is none.

    The quota of every parent group counts too.
    """
    bounds = [bound for group in groups(read, "cpu") for bound in [_bound(read, group)] if bound is not None]
    return min(bounds, default=None)


def _bound(read: Read, group: PurePosixPath) -> float | None:
    """The quota of one group: microseconds of CPU time in each period."""
    quota, period = [*read(f"{group}/cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = read(f"{group}/cpu.cfs_quota_us").strip(), read(f"{group}/cpu.cfs_period_us").strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period)):  # "max", -1, or missing
        return None
    return int(quota) / int(period)


def _allowed_cores() -> int:
    """The cores that this process may run on."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
