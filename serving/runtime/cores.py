"""How many cores this process may keep busy: those that it may run on, and as much time as its container is given."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# Where every container runtime and systemd mount the control groups.
ROOT = PurePosixPath("/sys/fs/cgroup")

# The content of a file, empty when there is none.
Read = Callable[[str], str]


def usable_cores() -> int:
    """The cores that this process may use, rounded down, at least 1."""
    quota = quota_cores(_read)
    allowed = _allowed_cores()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def quota_cores(read: Read) -> float | None:
    """The cores whose worth of time the control groups of this process give it; None when they set no bound.

    Every group above one's own bounds it as well. In a container, the names of those above may be unknown, and its own
    group is at the root of what is mounted.
    """
    bounds = [bound for group in _groups(read) for bound in [_bound(read, group)] if bound is not None]
    return min(bounds, default=None)


def _groups(read: Read) -> Iterator[PurePosixPath]:
    """Folders that may hold a bound: of version 2, or of version 1's cpu controller, each with those above it."""
    roots: list[tuple[PurePosixPath, str]] = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots.append((ROOT, path))
        elif "cpu" in controllers.split(","):
            # Distributions mount it under its own name, or under that of the pair that it was built with.
            roots += [(ROOT / "cpu", path), (ROOT / controllers, path)]
    for root, path in roots:
        group = root / path.lstrip("/")
        yield group
        yield from (above for above in group.parents if above.is_relative_to(root))


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


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except OSError:
        return ""
