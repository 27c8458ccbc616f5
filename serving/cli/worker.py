"""A worker: the process that the supervisor starts, `python -m serving.cli.worker NUMBER LINE`, and nobody else.

LINE is the descriptor of its end of the line (see `serving.runtime.worker_process`): it reads its settings from there, serves, and
drains when told to or when the line ends.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys

import uvloop

from serving.cli.refused import EXIT_NO, EXIT_START
from serving.core.errors import ContractBroken
from serving.runtime.config import ServerConfig
from serving.runtime.crash_points import VARIABLE, arm
from serving.runtime.lifecycle import StartFailed, StopFailed
from serving.runtime.log import start_log
from serving.runtime.server import Server, WorkerContext
from serving.runtime.worker_process import BLOCKED_SIGNALS, DRAIN

log = logging.getLogger("tidegate.worker")


async def work(number: str, line: socket.socket) -> int:
    """Serves until told to stop; gives the exit code."""
    reader, writer = await asyncio.open_unix_connection(sock=line)
    settings = await _read(reader)
    if not settings.endswith(b"\n"):  # the supervisor has died already
        return 0
    told = json.loads(settings)
    start_log(told["log_level"], f"worker {number}: ")
    arm(os.environ.get(VARIABLE, ""))
    server = Server(
        ServerConfig(**told["config"]),
        WorkerContext(told["counters_fd"], told["previous_counters_fd"], is_first=number == "0"),
    )
    asked = asyncio.Event()

    def on_ready() -> None:
        writer.write(json.dumps({"ready": [served.spec.title for served in server.repository]}).encode() + b"\n")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_SIGNALS)  # those that came meanwhile come now

    listening = asyncio.create_task(_listen(reader, asked), name="line")
    try:
        await server.run(on_ready, asked)
    except (ContractBroken, StartFailed) as error:
        writer.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        await writer.drain()
        return EXIT_START
    except StopFailed as error:
        log.error("%s", error)
        return EXIT_NO
    finally:
        listening.cancel()
        writer.close()
    return 0


async def _listen(reader: asyncio.StreamReader, asked: asyncio.Event) -> None:
    """Sets `asked` when the supervisor says so, or has died."""
    try:
        told = await _read(reader)
        log.info("%s: draining", "told to stop" if told == DRAIN else "the supervisor has died")
    finally:
        asked.set()  # whatever happened to the line: a worker that nobody looks after keeps the port from the next ones


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty when the supervisor has died."""
    try:
        return await reader.readline()
    except ConnectionError:  # it had not read all that was written to it: then the line does not end, it breaks
        return b""


if __name__ == "__main__":
    sys.exit(uvloop.run(work(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))))
