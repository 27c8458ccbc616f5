"""How much memory the workers may use, and whether the allowed live streams fit into it."""

import os
from dataclasses import dataclass

from tidegate.runtime.cgroups import Read, groups, read_file

MIB = 1024 * 1024
# What a live stream takes beside its row, as measured: its `Predict` call, its entries in tables, its key. A stream on
# a `PredictBlocks` call with thousands takes 2 KiB.
STREAM_BYTES = 26 * 1024


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The most memory that live streams can take.

    Attributes:
        rows: the size of a row of each model in bytes, see `Slots.row_bytes`.
        live_max: how many streams of a model may be live in a worker.
        workers: the number of workers.
        base: the memory of a worker without streams, in bytes.

    """

    rows: tuple[int, ...]
    live_max: int
    workers: int
    base: int

    def warning(self, limit: int, whose: str) -> str:
        """The warning when it exceeds the limit; empty when it does not, and when there is no model."""
        if not self.rows:
            return ""
        stream = sum(self.rows) // len(self.rows) + STREAM_BYTES
        total = self.workers * (self.base + self.live_max * len(self.rows) * stream)
        if total <= limit:
            return ""
        fit = max(1, (limit // self.workers - self.base) // (len(self.rows) * stream))
        models = f" in each of {len(self.rows)} models" if len(self.rows) > 1 else ""
        return (
            f"live streams may need more memory than there is: {self.live_max}{models} of {stream / 1024:.1f} KiB each,"
            f" each on its own call, and {self.base / MIB:.0f} MiB for the process, in {self.workers} worker(s), need"
            f" {total / MIB:.0f} MiB; {whose} has {limit / MIB:.0f} MiB. Set --live-max {fit} or fewer, or add memory"
        )


def memory_limit(read: Read = read_file) -> tuple[int, str]:
    """The memory that may be used, in bytes, and who limits it: the container, or the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bounds = [
        int(text)
        for group in groups(read, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for text in [read(f"{group}/{name}").strip()]
        if text.isdecimal()  # not "max", and not missing
    ]
    container = min(bounds, default=machine)
    return (container, "the container") if container < machine else (machine, "the machine")
