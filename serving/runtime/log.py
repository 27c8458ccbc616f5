"""The log: lines on stderr for which nobody who serves ever waits.

The laws of this file:
1. Whoever logs puts a line into a queue and goes on. One thread writes; it alone waits for whoever reads stderr.
2. The queue has a bound. What does not fit is dropped and counted, and how much was dropped is told as soon as that can be written.
3. Many lines of a kind are a few lines and a number: a client that repeats a mistake does not fill a disk.
4. The end of the process waits for what is still to be written, and no longer than FLUSH_SECONDS.
"""

import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque

STDERR = 2
# What may wait for the reader: some thousand lines, or a hundred tracebacks; little beside the memory of a server.
WAITING_BYTES_MAX = 1024 * 1024
# A reader that is alive takes a megabyte in far less; stopping is not held up for one that is not.
FLUSH_SECONDS = 1.0
# Of one kind so many lines are written in a period, in seconds. People see what happens from ten lines, and how often from
# the number; six lines a minute of each kind would be too few to follow a restart by.
LINES_OF_A_KIND = 10
PERIOD_SECONDS = 10.0
# Our own messages are fewer. When others make a new one each time, all that a logger says more is one kind.
KINDS_MAX = 256
# So much of a message tells its kind.
KIND_LENGTH_MAX = 200


def start_log(level: str, who: str = "") -> "Log":
    """Has everything that Python writes to stderr go through the queue: what is logged, printed, warned of and raised.

    Args:
        level: the least that is logged.
        who: what stands before the logger's name, such as "worker 1: ".

    """
    log = Log()
    log.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [log]
    root.setLevel(level)
    sys.stderr = Stderr(log)
    return log


def lines_dropped() -> int:
    """The lines of this process that were not written since it began; a traceback is one."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Log))


class Log(logging.Handler):
    """Writes records to a file descriptor, in a thread of its own that ends with the process.

    `dropped` is how many were not written, since nobody read those before, or nobody can read any.
    """

    def __init__(self, file: int = STDERR) -> None:
        super().__init__()
        self.dropped = 0
        self._file = file
        self._dropped_untold = 0
        self._waiting: deque[bytes] = deque()  # the first is being written
        self._waiting_bytes = 0
        self._kinds: dict[tuple[str, str], _Kind] = {}
        # Its lock can be taken again by a signal handler that logs, in the midst of whatever it has interrupted.
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Puts a record into the queue, unless there were many of its kind; never waits."""
        try:
            with self._changed:
                if self._count(record):
                    self.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - as every handler: a message that cannot be formatted is told with its place
            self.handleError(record)

    def write(self, text: str) -> None:
        """Puts whole lines into the queue; never waits."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(line) > WAITING_BYTES_MAX:
                self._drop()
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Waits until all is written, or FLUSH_SECONDS; `logging.shutdown` calls this at the end of the process."""
        with self._changed:
            self._tell_of_many(float("inf"))
            self._changed.wait_for(lambda: not self._waiting, FLUSH_SECONDS)

    def _count(self, record: logging.LogRecord) -> bool:
        """Whether a record is among the first of its kind."""
        text = (
            record.msg.partition("\n")[0][:KIND_LENGTH_MAX]
            if isinstance(record.msg, str)
            else type(record.msg).__name__
        )
        name = (record.name, text)
        if name not in self._kinds and len(self._kinds) >= KINDS_MAX:
            name = (record.name, "whatever else it has to say")
        kind = self._kinds.setdefault(name, _Kind(record.levelno))
        if not kind.lines:
            self._changed.notify_all()  # its period begins
        kind.lines += 1
        return kind.lines <= LINES_OF_A_KIND

    def _tell_of_many(self, now: float) -> None:
        """Says of the kinds whose period is over how many lines were left out."""
        over = [name for name, kind in self._kinds.items() if kind.begun + PERIOD_SECONDS <= now]
        for name in over:
            kind = self._kinds.pop(name)
            left_out = kind.lines - LINES_OF_A_KIND
            if left_out > 0:
                self._say(name[0], kind.level, f"{left_out} more in {time.monotonic() - kind.begun:.1f} s: {name[1]}")

    def _say(self, name: str, level: int, text: str) -> None:
        """Puts a line of its own into the queue."""
        self.write(f"{self.format(logging.LogRecord(name, level, __file__, 0, text, None, None))}\n")

    def _drop(self) -> None:
        self.dropped += 1
        self._dropped_untold += 1

    def _write_all(self) -> None:
        """Writes what comes, until the process ends."""
        while True:
            with self._changed:
                while not self._waiting:
                    ends = min((kind.begun + PERIOD_SECONDS for kind in self._kinds.values()), default=None)
                    self._changed.wait(None if ends is None else max(0.0, ends - time.monotonic()))
                    self._tell_of_many(time.monotonic())
                line = self._waiting[0]
            written = self._put(line)
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(line)
                self._tell_of_many(time.monotonic())
                if not written:
                    self._drop()
                elif self._dropped_untold:
                    text = f"{self._dropped_untold} lines were dropped: stderr was not read"
                    self._dropped_untold = 0
                    self._say("tidegate.log", logging.WARNING, text)
                self._changed.notify_all()

    def _put(self, line: bytes) -> bool:
        """Writes a line, however long that takes; gives whether it could."""
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except BlockingIOError:  # somebody who has the same terminal or pipe has it so
                poll = select.poll()
                poll.register(self._file, select.POLLOUT)
                poll.poll()
            except OSError:  # nobody will read it, or the disk is full: there is no place left to say so
                return False
        return True


class Stderr(io.TextIOBase):
    """Stands for `sys.stderr`: what is written to it goes line by line into the queue of a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = ""  # a line that has no end yet

    def write(self, text: str) -> int:
        """Takes text; it is written when its line has an end."""
        lines, end, rest = (self._begun + text).rpartition("\n")
        self._begun = rest
        if end:
            self._log.write(lines + end)
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """How the log writes what it is given."""
        return "utf-8"

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor to which all is written at last."""
        return STDERR


class _Kind:
    """The lines of one logger and message in a period."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.begun = time.monotonic()
        self.lines = 0
