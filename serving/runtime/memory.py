"""How much memory this process and its like may use, and whether the live streams that are allowed fit into it."""

import os
from dataclasses import dataclass

from serving.runtime.cgroups import Read, groups, read_file

MIB = 1024 * 1024
# What a live stream takes beside its row, as measured: its `Predict` call, its place in the tables, its key. One of thousands
# on a `PredictBlocks` call takes 2 KiB.
STREAM_BYTES = 26 * 1024


@dataclass(frozen=True, slots=True)
class Need:
    """The most that live streams can take.

    Attributes:
        rows: bytes of a row of each model, see `Slots.row_bytes`.
        live_max: streams of a model that may live in a worker.
        workers: that have so many.
        base: what a worker takes without any stream, in bytes.

    """

    rows: tuple[int, ...]
    live_max: int
    workers: int
    base: int

    def warning(self, limit: int, whose: str) -> str:
        """What to say when it is more than there is; empty when it is not."""
        stream = sum(self.rows) // len(self.rows) + STREAM_BYTES
        total = self.workers * (self.base + self.live_max * len(self.rows) * stream)
        if total <= limit:
            return ""
        fit = max(1, (limit // self.workers - self.base) // (len(self.rows) * stream))
        models = f" in each of {len(self.rows)} models" if len(self.rows) > 1 else ""
        return (
            f"live streams may take more memory than there is: {self.live_max}{models}, {stream / 1024:.1f} KiB each"
            f" with a call of its own, and {self.base / MIB:.0f} MiB beside them, in {self.workers} worker(s), are"
            f" {total / MIB:.0f} MiB; {whose} has {limit / MIB:.0f} MiB. Set --live-max {fit} or fewer, or give more memory"
        )


def memory_limit(read: Read = read_file) -> tuple[int, str]:
    """The bytes that may be used, and who sets that bound: the container, or the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bounds = [
        int(text)
        for group in groups(read, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for text in [read(f"{group}/{name}").strip()]
        if text.isdecimal()  # not "max", and there
    ]
    container = min(bounds, default=machine)
    return (container, "the container") if container < machine else (machine, "the machine")
