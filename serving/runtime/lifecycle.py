"""What a server reports about its life cycle, whichever process leads it: that it is ready, or how it failed."""

import logging
import os
import sys
from collections.abc import Sequence

log = logging.getLogger("tidegate.lifecycle")

STDOUT = 1


class StartFailed(Exception):
    """The server could not start: a port is taken. Models that cannot be served raise ContractBroken."""


class StopFailed(Exception):
    """The server stopped with unsaved state. Clients still have these timesteps, and will send them again."""


def ready_line(grpc: str, metrics: str, models: Sequence[str]) -> str:
    """The line that is printed when the server is ready. Other programs wait for it and read the addresses from it."""
    return f"ready: grpc={grpc} metrics=http://{metrics}/metrics models={','.join(models)}"


def print_ready(line: str) -> None:
    """Prints the line. When stdout cannot be written, the line is logged and serving goes on."""
    remaining = f"{line}\n".encode()
    try:
        if sys.stdout is None:
            raise BrokenPipeError("it was closed before the start")
        # Not through Python's buffer: unwritten text would be tried again at exit, and change the exit code.
        while remaining:
            remaining = remaining[os.write(STDOUT, remaining) :]
    except OSError as error:
        log.warning("stdout cannot be written: %s; %s", error.strerror or error, line)


def end_at_once(reason: str) -> None:
    """Ends the process without waiting for anything: something in it does not end."""
    log.critical("%s; the process ends", reason)
    logging.shutdown()
    os._exit(1)


def open_standard_files() -> None:
    """Opens descriptors 0, 1 and 2 on /dev/null if they are closed.

    Else the next files that are opened would get these numbers, and what is printed.
    """
    for file in range(3):
        try:
            os.fstat(file)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor: this one
