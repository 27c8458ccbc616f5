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

from serving.cli.refused import EXIT_NO, EXIT_START
from serving.core.errors import ContractBroken
from serving.runtime.child import DRAIN, HELD_SIGNALS
from serving.runtime.config import ServerConfig
from serving.runtime.crash import VARIABLE, arm
from serving.runtime.life import StartFailed, StopFailed
from serving.runtime.server import Place, Server

log = logging.getLogger("tidegate.worker")


async def work(number: str, line: socket.socket) -> int:
    """Serves until told to stop; gives the exit code."""
    reader, writer = await asyncio.open_unix_connection(sock=line)
    settings = await reader.readline()
    if not settings:  # the supervisor has died already
        return 0
    told = json.loads(settings)
    logging.basicConfig(
        level=told["log_level"],
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s worker {number}: %(name)s: %(message)s",
    )
    arm(os.environ.get(VARIABLE, ""))
    server = Server(ServerConfig(**told["config"]), Place(told["board"], told["last_board"]))
    asked = asyncio.Event()

    def on_ready() -> None:
        writer.write(json.dumps({"ready": [served.spec.title for served in server.repository]}).encode() + b"\n")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)  # those that came meanwhile come now

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
    told = await reader.readline()
    log.info("%s: draining", "told to stop" if told == DRAIN else "the supervisor has died")
    asked.set()


if __name__ == "__main__":
    sys.exit(uvloop.run(work(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))))
