"""Rings at a time, to some tens of microseconds.

The timers of an event loop know milliseconds only, and a latency that counts from when a timestep was due would be a
millisecond longer for that. Linux has timers that are files, and those the loop can wait for; elsewhere the loop's own
must do, and the report says how late they were.
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
    """`struct itimerspec`: how often again, and when first."""

    _fields_ = (
        ("again_s", ctypes.c_long),
        ("again_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Timer:
    """Calls `ring` at the time it was last set to, of `time.monotonic`; a time that has passed rings at once."""

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
        """Rings then, and not when it was set to before."""
        if self._file < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, at - time.monotonic()), self._callback)
            return
        seconds, nanoseconds = divmod(max(1, int(at * NANOSECONDS)), NANOSECONDS)  # 0 would be never
        timer = _TimerSpec(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._file, TFD_TIMER_ABSTIME, ctypes.byref(timer), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        """Rings no more."""
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
            return  # it was set to a later time since
        self._callback()
