"""Streams of a client's window as their users see them: what was submitted, and what came of it."""

from collections.abc import Sequence

from tests.client.windows import Block, Caller
from tidegate.client.errors import ClientError
from tidegate.client.resend_buffer import ResendBuffer
from tidegate.client.results import Group


class Timestep:
    """A timestep that a caller has submitted, alone or as a row of a block."""

    def __init__(self, value: float, caller: Caller | None, block: Block | None = None, place: int = 0) -> None:
        self.value = value
        self.caller = caller
        self.block = block
        self.place = place
        self.group: Group | None = None

    @property
    def settled(self) -> bool:
        """Whether its caller has the answer, an error, or was cancelled."""
        if self.block is not None:
            return bool(self.block.settled[self.place])
        assert self.caller is not None
        return self.caller.done()

    @property
    def error(self) -> ClientError | None:
        """What its caller got instead of an answer."""
        if self.block is not None:
            return self.block.errors.get(self.place)
        assert self.caller is not None
        error: ClientError | None = self.caller.error
        return error

    @property
    def answer(self) -> tuple[int, float, list[float]]:
        """Number and outputs."""
        if self.block is not None:
            sums, seen = self.block.columns
            return int(self.block.steps[self.place]), sums[self.place].item(), seen[self.place].tolist()
        assert self.caller is not None
        result = self.caller.result
        return result.step, result["sum"].item(), result["seen"].tolist()


class Stream:
    """A stream as its user sees it."""

    def __init__(self, name: int, index: int, buffer: ResendBuffer, before: Sequence[float]) -> None:
        self.name = name
        self.index = index
        self.buffer = buffer
        self.before = list(before)  # applied before it was opened here
        self.timesteps: list[Timestep] = []
        self.repeats: list[tuple[int, bool, Caller]] = []  # number, whether with other values, who asks
        self.groups = [Group(), Group()]
        self.lost: ClientError | None = None
        self.forgetting = False
        self.begun_again = False
        self.left = False
