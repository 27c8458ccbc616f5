"""One worker as its supervisor sees it: starts its process, exchanges messages with it, and waits for its end.

Both hold one end of a socket pair. The supervisor sends the settings, and later perhaps `drain`. The worker says what it
serves and where its counters are, or why it cannot start. In between, both ask each other about models: see
`runtime.model_messages`. When one of them dies, the other reads the end of the stream. A worker without a supervisor
drains, so no process is left that nobody controls.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from tidegate.runtime.channel import LINE_BYTES_MAX, Channel, Message
from tidegate.runtime.exposition import WorkerMetrics
from tidegate.runtime.shared_counters import SharedCounters, make_shared_file

# Makes a worker drain. A signal would not do: a second signal ends a worker at once, and whoever stops a whole process
# group has sent the first.
DRAIN = b"drain\n"
# Signals that would kill a process without handlers are blocked until the worker serves.
BLOCKED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class WorkerProcess:
    """The worker with one number.

    Args:
        number: its number, from 0.
        command: the command that starts it; its number and the descriptor of its socket are appended.
        settings: its settings; the descriptors of its counters are added.
        on_ready: called with this object when it serves.
        on_request: answers a request of the worker that it is called with.

    Attributes:
        channel: the channel to its process; None while there is none.

    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        settings: Mapping[str, object],
        on_ready: Callable[["WorkerProcess"], None],
        on_request: Callable[["WorkerProcess", Message], Awaitable[object]],
    ) -> None:
        self.number = number
        self.metrics = WorkerMetrics(str(number))
        self.models: Sequence[str] = ()
        self.refused = ""
        self._command = command
        self._settings = settings
        self._on_ready = on_ready
        self._on_request = on_request
        self.channel: Channel | None = None
        self._counters_fd: int | None = None  # descriptor of the counters of its last process that served
        self._writer: asyncio.StreamWriter | None = None
        self._draining = False
        self._socket: socket.socket
        self._ended: asyncio.Future[int]

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.number}: pid {self.metrics.pid}, {'up' if self.metrics.up else 'not up'}>"

    async def run(self) -> int:
        """Starts a process and waits for its end.

        Returns its exit code; if a signal killed it, the negative number of the signal.

        When cancelled, it kills the process and waits for its end all the same. Raises OSError when no process can be
        started.
        """
        counters_fd = make_shared_file()
        try:
            ended = self._spawn(counters_fd)
            try:
                await self._exchange(counters_fd)
                return await asyncio.shield(ended)
            finally:
                try:
                    self.metrics.up = False
                    self.kill()  # it has ended, unless this side has failed
                    await asyncio.wait([ended])
                finally:  # also when it is cancelled again while it waits
                    await self._close_socket()
        finally:
            if self._counters_fd != counters_fd:
                os.close(counters_fd)

    def drain(self) -> None:
        """Makes the process drain, if there is one: now, or as soon as it can be told."""
        self._draining = True
        if self._writer is not None:
            self._writer.write(DRAIN)

    def kill(self) -> None:
        """Kills the process, if there is one."""
        if self.metrics.pid:
            os.kill(self.metrics.pid, signal.SIGKILL)

    def reaped(self, status: int, cpu_seconds: float) -> None:
        """Records that the process has ended."""
        self.metrics.cpu_seconds += cpu_seconds
        self.metrics.pid = 0
        self._ended.set_result(os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Releases its counters."""
        if self._counters_fd is not None:
            os.close(self._counters_fd)
            self._counters_fd = None

    def _spawn(self, counters_fd: int) -> asyncio.Future[int]:
        """Starts a process. Returns a future of its exit code."""
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), counters_fd, *([] if self._counters_fd is None else [self._counters_fd])]
        command = [*self._command, str(self.number), str(theirs.fileno())]
        try:
            # No other thread of the supervisor starts processes, so no other process inherits them meanwhile.
            for file in inherited:
                os.set_inheritable(file, True)
            self.metrics.pid = os.posix_spawn(command[0], command, own_environment(), setsigmask=BLOCKED_SIGNALS)
        except OSError:
            ours.close()
            raise
        finally:
            for file in inherited:
                os.set_inheritable(file, False)
            theirs.close()
        self._socket = ours
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    async def _exchange(self, counters_fd: int) -> None:
        """Sends the settings and reads messages, until the process closes the socket."""
        self.refused = ""
        settings = {
            **self._settings,
            "counters_fd": counters_fd,
            "previous_counters_fd": self._counters_fd,
            "previous_counters": [counters.offset for counters in self.metrics.counters],
        }
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=LINE_BYTES_MAX)
        self._writer.write(json.dumps(settings).encode() + b"\n")
        if self._draining:  # `drain` was called when there was a process but no connection yet
            self._writer.write(DRAIN)
        channel = self.channel = Channel(
            reader,
            self._writer,
            partial(self._on_request, self),
            lambda line: self._on_message(json.loads(line), counters_fd),
        )
        try:
            await channel.read()
        finally:
            self.channel = None

    async def _close_socket(self) -> None:
        """Closes the socket. It is closed when this returns, even if the event loop ends right after it."""
        if self._writer is None:
            self._socket.close()
            return
        writer, self._writer = self._writer, None
        writer.transport.abort()  # nobody is left to read what was not sent
        with suppress(OSError):  # the process has ended, so an error of its connection does not matter
            await writer.wait_closed()

    def _on_message(self, message: Mapping[str, object], counters_fd: int) -> None:
        """Handles a message from the process."""
        match message:
            case {"refused": str(reason)}:
                self.refused = reason
            case {"counters": [*offsets]}:
                self._read_counters(counters_fd, [int(str(offset)) for offset in offsets])
            case {"ready": [*models]}:
                if self._counters_fd != counters_fd:
                    self._read_counters(counters_fd, [0])
                self.models = [str(model) for model in models]
                self.metrics.up = True
                self._on_ready(self)
            case _:
                raise AssertionError(f"worker {self.number} sent {message}")

    def _read_counters(self, counters_fd: int, offsets: Sequence[int]) -> None:
        """Reports these counters of the process from now on."""
        known = {each.offset: each for each in self.metrics.counters if self._counters_fd == counters_fd}
        self.metrics.counters = [known.get(offset) or SharedCounters.read(counters_fd, offset) for offset in offsets]
        if self._counters_fd not in (None, counters_fd):
            os.close(self._counters_fd)
        self._counters_fd = counters_fd


def own_environment() -> dict[str, str]:
    """Our environment with our own search path, so that a worker runs the same code as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}  # noqa: PTH100
