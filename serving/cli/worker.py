"""A worker: the process that the supervisor starts, `python -m serving.cli.worker NUMBER LINE`, and nobody else.

LINE is the descriptor of its end of the line (see `serving.runtime.child`): it reads its settings from there, serves, and
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

from serving.cli.errors import EXIT_FAILURE, EXIT_START_FAILED
from serving.core.errors import ContractBroken
from serving.runtime.child import DRAIN, HELD_SIGNALS
from serving.runtime.config import ServerConfig
from serving.runtime.crash import VARIABLE, arm
from serving.runtime.life import StartFailed, StopFailed
from serving.runtime.log import start_log
from serving.runtime.server import Place, Server

log = logging.getLogger("tidegate.worker")


async def work(number: str, line: socket.socket) -> int:
    """Serves until told to stop; gives the exit code."""
    reader, writer = await asyncio.open_unix_connection(sock=line)
    settings = await _read(reader)
    if not settings.endswith(b"\n"):  # the supervisor has died already
        return 0
    settings_json = json.loads(settings)
    start_log(settings_json["log_level"], f"worker {number}: ")
    arm(os.environ.get(VARIABLE, ""))
    server = Server(
        ServerConfig(**settings_json["config"]),
        Place(settings_json["board"], settings_json["last_board"], first=number == "0"),
    )
    stop_requested = asyncio.Event()

    def on_ready() -> None:
        writer.write(json.dumps({"ready": [served.spec.title for served in server.repository]}).encode() + b"\n")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)  # those that came meanwhile come now

    stop_waiter = asyncio.create_task(_wait_for_stop(reader, stop_requested), name="line")
    try:
        await server.run(on_ready, stop_requested)
    except (ContractBroken, StartFailed) as error:
        writer.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        await writer.drain()
        return EXIT_START_FAILED
    except StopFailed as error:
        log.error("%s", error)
        return EXIT_FAILURE
    finally:
        stop_waiter.cancel()
        writer.close()
    return 0


async def _wait_for_stop(reader: asyncio.StreamReader, stop_requested: asyncio.Event) -> None:
    """Sets `asked` when the supervisor says so, or has died."""
    try:
        settings_json = await _read(reader)
        log.info("%s: draining", "told to stop" if settings_json == DRAIN else "the supervisor has died")
    finally:
        stop_requested.set()  # whatever happened to the line: a worker that nobody looks after keeps the port from the next ones


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty when the supervisor has died."""
    try:
        return await reader.readline()
    except ConnectionError:  # it had not read all that was written to it: then the line does not end, it breaks
        return b""


if __name__ == "__main__":
    sys.exit(uvloop.run(work(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))))
