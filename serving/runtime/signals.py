"""Signal handling before the event loop takes over."""

import contextlib
import logging
import os
import signal
from types import FrameType

log = logging.getLogger("tidegate.signals")

# The first process of a container has this id. For this process the system ignores signals without a handler, even
# SIGTERM.
FIRST_PROCESS = 1


def take_signals(*, serves: bool) -> None:
    """Makes SIGTERM end this process, also as the first process of a container, and makes a server ignore SIGHUP.

    The handlers of an event loop replace these; then SIGHUP looks at the models.
    """
    if os.getpid() == FIRST_PROCESS:
        signal.signal(signal.SIGTERM, _end)
    if serves:
        signal.signal(signal.SIGHUP, hang_up)


def hang_up(*_: object) -> None:
    """Logs the signal and continues: the models are about to be read anyway."""
    log.warning("SIGHUP is ignored: the server has not started yet; SIGTERM drains and stops")


def leave_no_zombies() -> None:
    """Makes the system reap children if this is the first process: orphans become its children.

    Only for a process that starts no children itself.
    """
    if os.getpid() == FIRST_PROCESS:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):  # none of those that ended before is left
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _end(number: int, _: FrameType | None) -> None:
    """Ends the first process as the signal ends others: nothing is served yet."""
    os._exit(128 + number)
