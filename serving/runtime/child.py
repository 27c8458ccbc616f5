"""One worker as its supervisor sees it, over all its lives: it is begun, spoken to, and seen to its end.

Both hold an end of a line, a pair of connected sockets. The supervisor writes the settings, and later perhaps `drain`; the
worker writes one line, what it serves or why it will not. When one of them dies, the other reads the end of the line: a
worker that is alone drains, and nothing is left that nobody looks after.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from serving.runtime.board import Board, make_file
from serving.runtime.exposition import Source

# What the supervisor writes to have a worker end in good order. A signal would count: the second ends a worker at once,
# and whoever stops a whole group of processes has sent the first.
DRAIN = b"drain\n"
# What would end a process that has no handlers yet waits until the worker serves.
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Child:
    """The worker of one number.

    Args:
        number: which one, from 0.
        command: what starts it; its number and the descriptor of its end of the line are added.
        settings: what it is told, besides the descriptors of its boards.
        on_ready: is called when it serves.

    """

    def __init__(
        self, number: int, command: Sequence[str], settings: Mapping[str, object], on_ready: Callable[[], None]
    ) -> None:
        self.number = number
        self.source = Source(str(number))
        self.models: Sequence[str] = ()
        self.refused = ""
        self._command = command
        self._settings = settings
        self._on_ready = on_ready
        self._board: int | None = None  # descriptor of the board of its last life that served
        self._writer: asyncio.StreamWriter | None = None
        self._draining = False
        self._line: socket.socket
        self._ended: asyncio.Future[int]

    def __repr__(self) -> str:
        return f"<Child {self.number}: pid {self.source.pid}, {'up' if self.source.up else 'not up'}>"

    async def live(self) -> int:
        """Starts a process and waits for its end; gives its exit code, below 0 the number of the signal that killed it.

        When cancelled it kills the process, and has seen its end all the same. Raises OSError when there is no process to be had.
        """
        board = make_file()
        try:
            ended = self._spawn(board)
            try:
                await self._listen(board)
                return await asyncio.shield(ended)
            finally:
                try:
                    self.source.up = False
                    self.kill()  # it has ended, unless something is wrong on this side
                    await asyncio.wait([ended])
                finally:  # also when it is cancelled once more, while it waits
                    await self._hang_up()
        finally:
            if self._board != board:
                os.close(board)

    def drain(self) -> None:
        """Has the process end in good order, if there is one: now, or as soon as it can be told."""
        self._draining = True
        if self._writer is not None:
            self._writer.write(DRAIN)

    def kill(self) -> None:
        """Ends the process at once, if there is one."""
        if self.source.pid:
            os.kill(self.source.pid, signal.SIGKILL)

    def reaped(self, status: int, cpu_seconds: float) -> None:
        """Takes note that the process has ended."""
        self.source.cpu_seconds += cpu_seconds
        self.source.pid = 0
        self._ended.set_result(os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Lets go of what it counted."""
        if self._board is not None:
            os.close(self._board)
            self._board = None

    def _spawn(self, board: int) -> asyncio.Future[int]:
        """Starts a process; gives what becomes its exit code."""
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), board, *([] if self._board is None else [self._board])]
        command = [*self._command, str(self.number), str(theirs.fileno())]
        try:
            # No other thread of the supervisor starts processes, so nobody else inherits them meanwhile.
            for file in inherited:
                os.set_inheritable(file, True)
            self.source.pid = os.posix_spawn(command[0], command, _environment(), setsigmask=HELD_SIGNALS)
        except OSError:
            ours.close()
            raise
        finally:
            for file in inherited:
                os.set_inheritable(file, False)
            theirs.close()
        self._line = ours
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    async def _listen(self, board: int) -> None:
        """Tells the process its settings and takes what it says, until it lets go of the line."""
        self.refused = ""
        settings = {**self._settings, "board": board, "last_board": self._board}
        reader, self._writer = await asyncio.open_unix_connection(sock=self._line)
        self._writer.write(json.dumps(settings).encode() + b"\n")
        if self._draining:  # it was asked while there was a process but no line yet
            self._writer.write(DRAIN)
        try:
            async for line in reader:
                if line.endswith(b"\n"):  # else it was killed in the middle of a word
                    self._hear(json.loads(line), board)
        except ConnectionError:  # it ended before it had read everything
            pass

    async def _hang_up(self) -> None:
        """Closes the line; it is closed when this returns, also where the event loop ends right after it."""
        if self._writer is None:
            self._line.close()
            return
        writer, self._writer = self._writer, None
        writer.transport.abort()  # nobody is left to read what was not sent
        with suppress(OSError):  # how the line broke is no news: the process has ended
            await writer.wait_closed()

    def _hear(self, told: Mapping[str, object], board: int) -> None:
        """Takes what the process says."""
        match told:
            case {"refused": str(reason)}:
                self.refused = reason
            case {"ready": [*models]}:
                self.source.board = Board.read(board)
                if self._board is not None:
                    os.close(self._board)
                self._board = board
                self.models = [str(model) for model in models]
                self.source.up = True
                self._on_ready()
            case _:
                raise AssertionError(f"worker {self.number} said {told}")


def _environment() -> dict[str, str]:
    """Ours, with our own search path: a worker runs the code that this process runs, wherever that was found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}  # noqa: PTH100
