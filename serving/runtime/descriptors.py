"""File descriptors: how many the system allows, and how many are used."""

import contextlib
import errno
import os
import resource

# The highest limit that is requested: what systemd gives, and far more connections than a worker can serve. Some
# systems have no limit at all, and programs that count up to it take minutes.
DESCRIPTORS_MAX = 1024 * 1024


def raise_limit() -> None:
    """Raises the soft limit on descriptors to the hard one.

    Docker and systemd set the soft limit to 1,024 for old programs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        # Where the system allows fewer than it says (macOS does), the limit stays as it was.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft


def used() -> int:
    """About how many descriptors are used: the lowest free one.

    This takes microseconds, where counting takes milliseconds.
    """
    try:
        free = os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        if error.errno == errno.EMFILE:
            return limit()
        raise
    os.close(free)
    return free
