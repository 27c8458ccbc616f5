"""How many cores this process may keep busy: those that it may run on, and as much time as its container is given."""

import os
import sys
from pathlib import PurePosixPath

from serving.runtime.cgroups import Read, groups, read_file


def usable_cores() -> int:
    """The cores that this process may use, rounded down, at least 1."""
    quota = quota_cores(read_file)
    allowed = _allowed_cores()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def quota_cores(read: Read) -> float | None:
    """The cores whose worth of time the control groups of this process give it; None when they set no bound.

    Every group above one's own bounds it as well.
    """
    bounds = [bound for group in groups(read, "cpu") for bound in [_bound(read, group)] if bound is not None]
    return min(bounds, default=None)


def _bound(read: Read, group: PurePosixPath) -> float | None:
    """What one group sets: microseconds of time in a period of so many."""
    quota, period = [*read(f"{group}/cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = read(f"{group}/cpu.cfs_quota_us").strip(), read(f"{group}/cpu.cfs_period_us").strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period)):  # max, -1, or not there
        return None
    return int(quota) / int(period)


def _allowed_cores() -> int:
    """The cores that this process may run on."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
