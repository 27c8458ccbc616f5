"""A timer that is precise to some tens of microseconds.

The timers of an event loop have a resolution of one millisecond. A latency that counts from the due time of a timestep
would be up to one millisecond too long. Linux has timers with a file descriptor (`timerfd`), and an event loop can wait
for those. On other systems the timer of the loop is used, and the report shows how late it was.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
TFD_TIMER_ABSTIME = 1
NANOSECONDS = 1_000_000_000


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`: the interval of repetitions, then the time of the first expiration."""

    _fields_ = (
        ("again_s", ctypes.c_long),
        ("again_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Timer:
    """Calls `callback` at a time of `time.monotonic`. A time in the past calls it at once."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._file = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK_CLOEXEC)
            if self._file < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create failed")
            self._loop.add_reader(self._file, self._on_expired)

    def set(self, at: float) -> None:
        """Sets the time. It replaces the time that was set before."""
        if self._file < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, at - time.monotonic()), self._callback)
            return
        seconds, nanoseconds = divmod(max(1, int(at * NANOSECONDS)), NANOSECONDS)  # 0 would disarm the timer
        timer = _TimerSpec(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._file, TFD_TIMER_ABSTIME, ctypes.byref(timer), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        """Stops the timer."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _on_expired(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return  # it was set to a later time in the meantime
        self._callback()
