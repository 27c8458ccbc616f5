"""The metrics of one process in shared memory, which another process can read, and their description.

The rules of this file:
1. One process writes, the others read. A number is eight aligned bytes, written at once: nothing is locked, and a
   reader is at most one update behind. What was counted stays there even if the writer is killed with the next
   instruction.
2. The description is written before the first number, and never changes. A writer tells its readers when that is done.
3. A file holds several counters, one behind the other: those of the process, and those of each model that was loaded.
   The writer tells its readers which of them count. Those of a model that was unloaded stay where they are, some
   kilobytes, until the writer ends.
4. A new writer creates new counters. It continues from the previous counts with the same names and labels: models may
   have changed meanwhile, and no count falls.
"""

import json
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["counter", "gauge", "histogram"]
Numbers: TypeAlias = "memoryview[float]"  # doubles, which count exactly up to 2**53

# The header: a magic number, the length of the description, and that of all. Then come the description and the numbers.
# Counters begin at a page of memory, as `mmap` demands.
HEADER = struct.Struct("<8sQQ")
MAGIC = b"tdgblk02"
NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric: its name, its help text, the names of its labels, and the label values of each of its series.

    `bounds` are the buckets of a histogram. `total` and `part` are for gauges: the series with the label values `total`
    has the same value in every process, the total over all of them. The exposition reports it less the series `part` of
    every process.
    """

    name: str
    help: str
    kind: Kind
    labels: Sequence[str]
    series: Sequence[Sequence[str]]
    bounds: Sequence[float] = ()
    total: Sequence[str] = ()
    part: Sequence[str] = ()

    @property
    def width(self) -> int:
        """How many numbers a series has.

        A histogram has one for each bucket, one for values beyond the last, and the sum.
        """
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class SharedCounters:
    """The numbers of some metrics. Made by `create` or `read`. `offset` is where they begin in their file."""

    def __init__(self, families: Sequence[MetricFamily], numbers: Numbers, offset: int = 0) -> None:
        self.families = families
        self.offset = offset
        self._numbers = numbers
        self._ranges: dict[tuple[str, ...], tuple[int, int]] = {}
        offset = 0
        for family in families:
            for series in family.series:
                self._ranges[family.name, *series] = (offset, offset + family.width)
                offset += family.width

    def __repr__(self) -> str:
        return f"<SharedCounters: {len(self._ranges)} series of {len(self.families)} metrics>"

    @classmethod
    def create(cls, families: Sequence[MetricFamily], file: int | None = None) -> "SharedCounters":
        """New counters, all 0: behind those that a file has, which processes share, or in private memory."""
        description = json.dumps([_as_json(family) for family in families]).encode()
        size = _start(len(description)) + NUMBER_BYTES * sum(family.width * len(family.series) for family in families)
        if file is None:
            offset = 0
            memory = mmap.mmap(-1, size)
        else:
            offset = -(-os.fstat(file).st_size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            os.ftruncate(file, offset + size)
            memory = mmap.mmap(file, size, offset=offset)
        memory[HEADER.size : HEADER.size + len(description)] = description
        memory[: HEADER.size] = HEADER.pack(MAGIC, len(description), size)
        return cls(families, memoryview(memory)[_start(len(description)) :].cast("d"), offset)

    @classmethod
    def read(cls, file: int, offset: int = 0) -> "SharedCounters":
        """The counters that another process has created in a file. Raises ValueError when there are none there."""
        header = os.pread(file, HEADER.size, offset)
        magic, length, size = HEADER.unpack(header) if len(header) == HEADER.size else (header, 0, 0)
        if magic != MAGIC:
            raise ValueError(f"got counters that begin with {magic!r}, expected {MAGIC!r}")
        memory = memoryview(mmap.mmap(file, size, prot=mmap.PROT_READ, offset=offset))
        description = json.loads(bytes(memory[HEADER.size : HEADER.size + length]))
        numbers = memory[_start(length) :].cast("d")
        return cls([MetricFamily(**family) for family in description], numbers, offset)

    def numbers(self, name: str, series: Sequence[str]) -> Numbers:
        """A view of the numbers of a series. Readers see what is written to it.

        It is empty when there is no such series.
        """
        first, end = self._ranges.get((name, *series), (0, 0))
        return self._numbers[first:end]

    def continue_from(self, last: "SharedCounters") -> None:
        """Copies the counts of the counters before these. Gauges start at 0, and so do histograms with other bounds."""
        bounds = {family.name: list(family.bounds) for family in last.families if family.kind != "gauge"}
        for family in self.families:
            if bounds.get(family.name) == list(family.bounds):
                for series in family.series:
                    before = last.numbers(family.name, series)
                    if before:
                        self.numbers(family.name, series)[:] = before


def make_shared_file() -> int:
    """The descriptor of an empty file; in memory, where the system supports that.

    The file vanishes with its last user.
    """
    if sys.platform == "linux":
        return os.memfd_create("tidegate-metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _start(description: int) -> int:
    """Where the numbers begin: the next multiple of their size."""
    return -(-(HEADER.size + description) // NUMBER_BYTES) * NUMBER_BYTES


def _as_json(family: MetricFamily) -> dict[str, object]:
    return {name: getattr(family, name) for name in MetricFamily.__slots__}
