"""A worker process, which only the supervisor starts: `python -m tidegate.cli.worker NUMBER FD`.

FD is the file descriptor of a socket to the supervisor (see `tidegate.runtime.worker_process`). The worker reads its settings from
the socket and serves. It drains when the supervisor asks for it or has ended.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys

import uvloop

from tidegate.cli.errors import EXIT_FAILURE, EXIT_START_FAILED
from tidegate.core.errors import ContractBroken
from tidegate.runtime.channel import LINE_BYTES_MAX, Channel, ChannelClosed, Message
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.crash_points import VARIABLE, arm
from tidegate.runtime.lifecycle import StartFailed, StopFailed
from tidegate.runtime.log import start_log
from tidegate.runtime.model_messages import RemoteControl, answer_supervisor
from tidegate.runtime.server import Server
from tidegate.runtime.shared_counters import SharedCounters
from tidegate.runtime.worker_context import WorkerContext
from tidegate.runtime.worker_process import BLOCKED_SIGNALS, DRAIN

log = logging.getLogger("tidegate.worker")


async def work(number: str, supervisor: socket.socket) -> int:
    """Serves until the worker must stop. Returns the exit code."""
    reader, writer = await asyncio.open_unix_connection(sock=supervisor, limit=LINE_BYTES_MAX)
    settings_line = await _read(reader)
    if not settings_line.endswith(b"\n"):  # the supervisor has ended already
        return 0
    settings = json.loads(settings_line)
    start_log(settings["log_level"], settings["log_format"], number)
    arm(os.environ.get(VARIABLE, ""))
    stop_requested = asyncio.Event()

    async def on_request(request: Message) -> object:
        return await answer_supervisor(request, server.host)

    def on_line(line: bytes) -> None:
        assert line == DRAIN
        log.info("the supervisor asked to stop: draining")
        stop_requested.set()

    channel = Channel(reader, writer, on_request, on_line)
    previous = settings["previous_counters_fd"]
    server = Server(
        ServerConfig(**settings["config"]),
        WorkerContext(
            settings["counters_fd"],
            [SharedCounters.read(previous, offset) for offset in settings["previous_counters"] if previous is not None],
            is_first=number == "0",
            control=RemoteControl(channel),
        ),
    )

    def tell_counters() -> None:
        channel.send({"counters": [counters.offset for counters in server.metrics.counters]})

    def on_ready() -> None:
        tell_counters()
        server.on_models = tell_counters
        channel.send({"ready": server.titles})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_SIGNALS)  # delivers the pending signals

    stop_waiter = asyncio.create_task(_wait_for_stop(channel, stop_requested), name="wait-for-stop")
    try:
        await server.run(on_ready, stop_requested)
    except ChannelClosed:  # the supervisor has ended while this worker started
        return 0
    except (ContractBroken, StartFailed) as error:
        channel.send({"refused": str(error)})
        await writer.drain()
        return EXIT_START_FAILED
    except StopFailed as error:
        log.error("%s", error)
        return EXIT_FAILURE
    finally:
        stop_waiter.cancel()
        writer.close()
    return 0


async def _wait_for_stop(channel: Channel, stop_requested: asyncio.Event) -> None:
    """Sets `stop_requested` when the supervisor has ended."""
    try:
        await channel.read()
        if not stop_requested.is_set():
            log.info("the supervisor has ended: draining")
    finally:
        stop_requested.set()  # also after an error: a worker without a supervisor would keep the port


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Returns the next line; empty when the supervisor has ended."""
    try:
        return await reader.readline()
    except ConnectionError:  # a supervisor that ends with unread data resets the connection
        return b""


if __name__ == "__main__":
    sys.exit(uvloop.run(work(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))))
