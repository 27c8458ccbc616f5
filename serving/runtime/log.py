"""The log: lines on stderr. Writing them never blocks the server.

The rules of this file:
1. A log call puts a line into a queue and returns. One thread writes, and only this thread waits for the reader of
   stderr.
2. The queue has a bound. Lines that do not fit are dropped and counted, and the number is logged as soon as stderr can
   be written.
3. Repeated messages are limited: a few lines and then a number. A client that repeats a mistake does not fill a disk.
4. The exit of the process waits until the queue is written, but no longer than FLUSH_SECONDS.
"""

import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque

from tidegate.runtime.log_format import LogFormat, make_formatter

STDERR = 2
# How many bytes may wait for the reader: some thousand lines, or a hundred tracebacks. It is little beside the memory
# of a server.
WAITING_BYTES_MAX = 1024 * 1024
# A reader that is alive takes a megabyte in far less time. The exit does not wait for one that is not.
FLUSH_SECONDS = 1.0
# How many lines of one kind are written in one period, and its length in seconds. Ten lines show people what happens, and the
# number how often. Six lines a minute would be too few to follow a restart.
LINES_OF_A_KIND = 10
PERIOD_SECONDS = 10.0
# The server has fewer kinds of messages. When a library makes a new one each time, its further messages count as one
# kind.
KINDS_MAX = 256
# The logger of `runtime.stream_log`: whoever follows a stream needs each of its lines.
UNLIMITED = "tidegate.life"
# The length of a message that identifies its kind.
KIND_LENGTH_MAX = 200


def start_log(level: str, form: LogFormat = "text", worker: str = "") -> "Log":
    """Sends everything that Python writes to stderr through the queue: logs, prints, warnings and tracebacks.

    Args:
        level: the lowest level that is logged.
        form: the form of the lines.
        worker: the number of the worker; empty when there is one process.

    """
    log = Log()
    log.setFormatter(make_formatter(form, worker))
    root = logging.getLogger()
    root.handlers[:] = [log]
    root.setLevel(level)
    if form == "json" and root.isEnabledFor(logging.INFO):
        logging.getLogger(UNLIMITED).setLevel(logging.DEBUG)
    sys.stderr = Stderr(log)
    return log


def lines_dropped() -> int:
    """How many lines of this process were dropped since its start. A traceback counts as one."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Log))


class Log(logging.Handler):
    """Writes records to a file descriptor, in a daemon thread.

    `dropped` is how many were not written, because nobody has read stderr in time, or nobody can.
    """

    def __init__(self, file: int = STDERR) -> None:
        super().__init__()
        self.dropped = 0
        self._file = file
        self._dropped_unreported = 0
        self._waiting: deque[bytes] = deque()  # the first one is being written
        self._waiting_bytes = 0
        self._kinds: dict[tuple[str, str], _Kind] = {}
        # The lock is reentrant: a signal handler may log while it interrupts any code here.
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record, unless there were many of its kind. Never blocks."""
        try:
            with self._changed:
                if record.name == UNLIMITED or self._count(record):
                    self.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - as in every handler: a message that cannot be formatted is reported with its place
            self.handleError(record)

    def write(self, text: str) -> None:
        """Queues whole lines. Never blocks."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(line) > WAITING_BYTES_MAX:
                self._drop()
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Waits until all is written, or FLUSH_SECONDS. `logging.shutdown` calls this at exit."""
        with self._changed:
            self._report_repeats(float("inf"))
            self._changed.wait_for(lambda: not self._waiting, FLUSH_SECONDS)

    def _count(self, record: logging.LogRecord) -> bool:
        """Counts a record. Returns whether it is among the first of its kind."""
        text = (
            record.msg.partition("\n")[0][:KIND_LENGTH_MAX]
            if isinstance(record.msg, str)
            else type(record.msg).__name__
        )
        name = (record.name, text)
        if name not in self._kinds and len(self._kinds) >= KINDS_MAX:
            name = (record.name, "other messages")
        kind = self._kinds.setdefault(name, _Kind(record.levelno))
        if not kind.lines:
            self._changed.notify_all()  # its period begins
        kind.lines += 1
        return kind.lines <= LINES_OF_A_KIND

    def _report_repeats(self, now: float) -> None:
        """Logs how many lines were left out, for each kind whose period is over."""
        over = [name for name, kind in self._kinds.items() if kind.begun + PERIOD_SECONDS <= now]
        for name in over:
            kind = self._kinds.pop(name)
            left_out = kind.lines - LINES_OF_A_KIND
            if left_out > 0:
                self._write_own(
                    name[0], kind.level, f"{left_out} more in {time.monotonic() - kind.begun:.1f} s: {name[1]}"
                )

    def _write_own(self, name: str, level: int, text: str) -> None:
        """Queues a line of the log itself."""
        self.write(f"{self.format(logging.LogRecord(name, level, __file__, 0, text, None, None))}\n")

    def _drop(self) -> None:
        self.dropped += 1
        self._dropped_unreported += 1

    def _write_all(self) -> None:
        """Writes queued lines until the process ends."""
        while True:
            with self._changed:
                while not self._waiting:
                    wakeup_at = min((kind.begun + PERIOD_SECONDS for kind in self._kinds.values()), default=None)
                    self._changed.wait(None if wakeup_at is None else max(0.0, wakeup_at - time.monotonic()))
                    self._report_repeats(time.monotonic())
                line = self._waiting[0]
            written = self._put(line)
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(line)
                self._report_repeats(time.monotonic())
                if not written:
                    self._drop()
                elif self._dropped_unreported:
                    text = f"{self._dropped_unreported} lines were dropped: stderr was not read"
                    self._dropped_unreported = 0
                    self._write_own("tidegate.log", logging.WARNING, text)
                self._changed.notify_all()

    def _put(self, line: bytes) -> bool:
        """Writes a line, however long that takes. Returns whether it was possible."""
        remaining = memoryview(line)
        while remaining:
            try:
                remaining = remaining[os.write(self._file, remaining) :]
            except BlockingIOError:  # another process with the same terminal or pipe made it non-blocking
                poll = select.poll()
                poll.register(self._file, select.POLLOUT)
                poll.poll()
            except OSError:  # nobody will read it, or the disk is full: there is nowhere to report it
                return False
        return True


class Stderr(io.TextIOBase):
    """Replaces `sys.stderr`: what is written to it goes to the queue of a log, line by line."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._partial_line = ""  # a line that is not complete yet

    def write(self, text: str) -> int:
        """Takes text. A line is written when it is complete."""
        lines, end, rest = (self._partial_line + text).rpartition("\n")
        self._partial_line = rest
        if end:
            self._log.write(lines + end)
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the log."""
        return "utf-8"

    def writable(self) -> bool:
        """Always True."""
        return True

    def fileno(self) -> int:
        """The descriptor of stderr itself."""
        return STDERR


class _Kind:
    """The lines of one logger and message in one period."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.begun = time.monotonic()
        self.lines = 0
