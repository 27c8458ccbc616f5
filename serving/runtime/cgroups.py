"""The control groups of this process, which hold the limits of a container."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# Where every container runtime and systemd mount the control groups.
ROOT = PurePosixPath("/sys/fs/cgroup")

# Returns the content of a file; empty when there is none.
Read = Callable[[str], str]


def groups(read: Read, controller: str) -> Iterator[PurePosixPath]:
    """The folders that may hold a limit: of version 2, or of one controller of version 1. Each comes with its parents.

    In a container, the names of the parents may be unknown, and its own group is at the root of the mount.
    """
    roots: list[tuple[PurePosixPath, str]] = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots.append((ROOT, path))
        elif controller in controllers.split(","):
            # Distributions mount a controller under its own name, or under that of the pair it was built with.
            roots += [(ROOT / controller, path), (ROOT / controllers, path)]
    for root, path in roots:
        group = root / path.lstrip("/")
        yield group
        yield from (above for above in group.parents if above.is_relative_to(root))


def read_file(path: str) -> str:
    """The content of a system file; empty when it does not exist or cannot be read."""
    try:
        return Path(path).read_text("ascii")
    except OSError:
        return ""
