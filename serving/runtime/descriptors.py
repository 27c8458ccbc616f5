"""Descriptors of files and sockets: as many as the system allows, and how many are used."""

import contextlib
import errno
import os
import resource

# The most that is asked for: what systemd gives, and far more connections than a worker can serve. Some systems set no
# bound at all, and programs that count up to it take minutes.
DESCRIPTORS_MAX = 1024 * 1024


def raise_limit() -> None:
    """Raises the soft bound on descriptors to the hard one. Docker's and systemd's soft bound is 1,024, for programs of old."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        # Where the system allows fewer than it says (macOS does), what there was is what there is.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def limit() -> int:
    """The descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft


def used() -> int:
    """About how many descriptors are used: the lowest that is free. It costs microseconds, where a count costs milliseconds."""
    try:
        free = os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        if error.errno == errno.EMFILE:
            return limit()
        raise
    os.close(free)
    return free
