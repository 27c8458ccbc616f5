"""What signals do to a process of ours before its event loop takes them, and SIGHUP at all times."""

import contextlib
import logging
import os
import signal
from types import FrameType

log = logging.getLogger("tidegate.signals")

# The process of a container that is its first: the system drops signals that it has no handler for, even SIGTERM.
FIRST_PROCESS = 1


def take_signals(*, serves: bool) -> None:
    """Sees to it that from now on SIGTERM ends this process, the first of a container too; and that SIGHUP does not end a server.

    An event loop that adds handlers of its own takes over from these.
    """
    if os.getpid() == FIRST_PROCESS:
        signal.signal(signal.SIGTERM, _end)
    if serves:
        signal.signal(signal.SIGHUP, hang_up)


def hang_up(*_: object) -> None:
    """Goes on: a terminal that was closed, or a tool that rotates logs, is not to end a server."""
    log.warning("SIGHUP: nothing is read again, serving goes on; SIGTERM drains and ends")


def leave_no_zombies() -> None:
    """Has the system forget children as they end, if this is the first process: all that lose their parent become its own.

    Only for a process that starts none itself.
    """
    if os.getpid() == FIRST_PROCESS:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):  # there is none left of those that ended before
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _end(number: int, _: FrameType | None) -> None:
    """Ends the first process as the signal does to others: nothing is served yet."""
    os._exit(128 + number)
