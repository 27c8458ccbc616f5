"""The control groups of this process: where a container's bounds are written."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# Where every container runtime and systemd mount the control groups.
ROOT = PurePosixPath("/sys/fs/cgroup")

# The content of a file, empty when there is none.
Read = Callable[[str], str]


def groups(read: Read, controller: str) -> Iterator[PurePosixPath]:
    """Folders that may hold a bound: of version 2, or of a controller of version 1, each with those above it.

    In a container, the names of those above may be unknown, and its own group is at the root of what is mounted.
    """
    roots: list[tuple[PurePosixPath, str]] = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots.append((ROOT, path))
        elif controller in controllers.split(","):
            # Distributions mount it under its own name, or under that of the pair that it was built with.
            roots += [(ROOT / controller, path), (ROOT / controllers, path)]
    for root, path in roots:
        group = root / path.lstrip("/")
        yield group
        yield from (above for above in group.parents if above.is_relative_to(root))


def read_file(path: str) -> str:
    """A file of the system; empty when there is none, or when it may not be read."""
    try:
        return Path(path).read_text("ascii")
    except OSError:
        return ""
