"""A board of measurements: numbers in memory that another process can read, and what each of them means.

The laws of this file:
1. One process writes a board, all others read it. A number is eight aligned bytes, written at once: nothing is locked, and
   a reader is one update behind at most. What was counted is there even if the writer is killed with the next instruction.
2. What the numbers mean is written before the first of them, and never changes. A writer tells its readers when that is done.
3. A new writer begins a new board, and goes on from the counts of the last one that have the same names and labels: models
   may have changed meanwhile, and no count falls.
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

# What a board begins with, and the length of its description, which follows. The numbers come behind that.
HEADER = struct.Struct("<8sQ")
MAGIC = b"tdgblk01"
NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, what it tells, the names of its labels, and the label values of each of its series.

    `bounds` are the buckets of a histogram. `whole`, of a gauge, names label values whose series tells the same in every
    process, what all of them have together; from it is to be taken what the series `part` of every process says.
    """

    name: str
    text: str
    kind: Kind
    labels: Sequence[str]
    series: Sequence[Sequence[str]]
    bounds: Sequence[float] = ()
    whole: Sequence[str] = ()
    part: Sequence[str] = ()

    @property
    def width(self) -> int:
        """How many numbers a series has: a histogram one a bucket, one for what is beyond the last, and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Board:
    """The numbers of some families; made by `begin` or `read`."""

    def __init__(self, families: Sequence[Family], numbers: Numbers) -> None:
        self.families = families
        self._numbers = numbers
        self._places: dict[tuple[str, ...], tuple[int, int]] = {}
        place = 0
        for family in families:
            for series in family.series:
                self._places[family.name, *series] = (place, place + family.width)
                place += family.width

    def __repr__(self) -> str:
        return f"<Board: {len(self._places)} series of {len(self.families)} families>"

    @classmethod
    def begin(cls, families: Sequence[Family], file: int | None = None) -> "Board":
        """A new board, all 0: in an empty file that processes share, or in memory of this process alone."""
        described = json.dumps([_as_json(family) for family in families]).encode()
        size = _start(len(described)) + NUMBER_BYTES * sum(family.width * len(family.series) for family in families)
        if file is None:
            memory = mmap.mmap(-1, size)
        else:
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
        memory[: HEADER.size] = HEADER.pack(MAGIC, len(described))
        memory[HEADER.size : HEADER.size + len(described)] = described
        return cls(families, memoryview(memory)[_start(len(described)) :].cast("d"))

    @classmethod
    def read(cls, file: int) -> "Board":
        """The board that another process has begun in a file; ValueError when there is none."""
        memory = memoryview(mmap.mmap(file, 0, prot=mmap.PROT_READ))
        magic, length = HEADER.unpack_from(memory)
        if magic != MAGIC:
            raise ValueError(f"got a board that begins with {magic!r}, expected {MAGIC!r}")
        described = json.loads(bytes(memory[HEADER.size : HEADER.size + length]))
        return cls([Family(**family) for family in described], memory[_start(length) :].cast("d"))

    def numbers(self, name: str, series: Sequence[str]) -> Numbers:
        """The numbers of a series, where they are: what is written into them is seen by all readers.

        None at all when there is no such series.
        """
        first, end = self._places.get((name, *series), (0, 0))
        return self._numbers[first:end]

    def go_on_from(self, last: "Board") -> None:
        """Takes over the counts of the board before this one. Gauges begin at 0, and so do buckets with other bounds."""
        bounds = {family.name: list(family.bounds) for family in last.families if family.kind != "gauge"}
        for family in self.families:
            if bounds.get(family.name) == list(family.bounds):
                for series in family.series:
                    before = last.numbers(family.name, series)
                    if before:
                        self.numbers(family.name, series)[:] = before


def make_file() -> int:
    """Descriptor of an empty file that is in memory, where the system has such, and gone with its last user."""
    if sys.platform == "linux":
        return os.memfd_create("tidegate-metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _start(described: int) -> int:
    """Where the numbers begin: the next multiple of their size."""
    return -(-(HEADER.size + described) // NUMBER_BYTES) * NUMBER_BYTES


def _as_json(family: Family) -> dict[str, object]:
    return {name: getattr(family, name) for name in Family.__slots__}
