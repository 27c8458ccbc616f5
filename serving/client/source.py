"""What `Stream.predict` and `Block.predict` read, from anything that can be iterated over, at once or asynchronously."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from serving.client import arguments
from serving.client.errors import InvalidTimestep

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Rows = Iterable[Row] | AsyncIterable[Row]


class Source(Generic[Row]):
    """Reads one row after the other.

    Attributes:
        row: the last one read.
        ended: whether there are no more.

    Raises:
        InvalidArgument: the argument called `field` cannot be iterated over.

    """

    def __init__(self, field: str, rows: Rows[Row]) -> None:
        self.row: Row
        self.ended = False
        self._rows: Iterator[Row] | None = None
        self._later: AsyncIterator[Row] | None = None
        self._next: asyncio.Future[Row] | None = None
        if isinstance(rows, AsyncIterable):
            self._later = aiter(rows)
        else:
            self._rows = rows_of(field, rows)

    async def read(self, unless: "asyncio.Future[Any] | None") -> bool:
        """Whether there is another row in `row`; False too when `unless` was done first."""
        try:
            if self._rows is not None:
                self.row = next(self._rows)
                return True
            return await self._read_later(unless)
        except (StopIteration, StopAsyncIteration):
            self.ended = True
            return False

    async def answers(
        self, submit: Callable[[Row], Awaitable["asyncio.Future[Answer]"]], window: Callable[[], int]
    ) -> AsyncIterator[Answer]:
        """Submits row after row, so many ahead, and yields the answers in order, each as soon as it is there.

        A row that is no timestep is told after the answers to those before it, and nothing is read behind it.
        """
        pending: deque[asyncio.Future[Answer]] = deque()
        try:
            while pending or not self.ended:
                if pending and (self.ended or pending[0].done() or len(pending) >= window()):
                    yield await pending[0]
                    pending.popleft()
                elif await self.read(unless=pending[0] if pending else None):
                    try:
                        pending.append(await submit(self.row))
                    except InvalidTimestep as error:
                        pending.append(self.failed(error))
        finally:
            for answer in pending:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # raised to the caller for the first of them
            await self.close()

    def failed(self, error: Exception) -> asyncio.Future[Any]:
        """The answer to a row that cannot be sent, after those to the rows before it; nothing is read behind it."""
        self.ended = True
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(error)
        return answer

    async def close(self) -> None:
        """Reads no more."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
            if not self._next.cancelled():
                self._next.exception()  # the row comes too late, and so does what went wrong with it

    async def _read_later(self, unless: "asyncio.Future[Any] | None") -> bool:
        if self._next is None:
            self._next = asyncio.ensure_future(_next(cast(AsyncIterator[Row], self._later)))
        await asyncio.wait([self._next, *([unless] if unless is not None else [])], return_when=asyncio.FIRST_COMPLETED)
        if not self._next.done():
            return False
        done, self._next = self._next, None
        self.row = done.result()
        return True


def rows_of(field: str, rows: Iterable[Row]) -> Iterator[Row]:
    """What can be iterated over; raises InvalidArgument, which names the field, when it cannot."""
    try:
        return iter(rows)
    except TypeError:
        raise arguments.wrong(field, rows, "something to iterate over") from None


async def _next(rows: AsyncIterator[Row]) -> Row:
    return await anext(rows)
