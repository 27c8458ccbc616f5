"""What `Stream.predict` and `Block.predict` read, from anything that can be iterated over, at once or asynchronously."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from serving.client import arguments
from serving.client.errors import InvalidTimestep

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Rows = Iterable[Row] | AsyncIterable[Row]


async def answers(
    field: str,
    rows: Rows[Row],
    submit: Callable[[Row], Awaitable["asyncio.Future[Answer]"]],
    window: Callable[[], int],
) -> AsyncIterator[Answer]:
    """Submits row after row, so many ahead, and yields the answers in order, each as soon as it is there.

    A row that is no timestep is told after the answers to those before it, and nothing is read behind it.

    Raises:
        InvalidArgument: the argument called `field` cannot be iterated over.

    """
    source = aiter(rows) if isinstance(rows, AsyncIterable) else rows_of(field, rows)
    reading: asyncio.Future[Row] | None = None
    pending: deque[asyncio.Future[Answer]] = deque()
    ended = False
    try:
        while pending or not ended:
            if pending and (ended or pending[0].done() or len(pending) >= window()):
                yield await pending[0]
                pending.popleft()
                continue
            if isinstance(source, AsyncIterator):
                reading = reading or asyncio.ensure_future(_next(source))
                waiting: list[asyncio.Future[Any]] = [reading, *list(pending)[:1]]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    continue
                read, reading = reading.result, None
            else:
                read = source.__next__
            try:
                row = read()
            except (StopIteration, StopAsyncIteration):
                ended = True
                continue
            try:
                pending.append(await submit(row))
            except InvalidTimestep as error:
                ended = True
                pending.append(asyncio.get_running_loop().create_future())
                pending[-1].set_exception(error)
    finally:
        await _abandon(pending, reading)


async def _abandon(pending: Iterable["asyncio.Future[Answer]"], reading: "asyncio.Future[Row] | None") -> None:
    """Nobody waits for these any more, nor for what went wrong with them."""
    for answer in pending:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # raised to the caller for the first of them
    if reading is not None:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # the row comes too late


def rows_of(field: str, rows: Iterable[Row]) -> Iterator[Row]:
    """What can be iterated over; raises InvalidArgument, which names the field, when it cannot."""
    try:
        return iter(rows)
    except TypeError:
        raise arguments.wrong(field, rows, "something to iterate over") from None


async def _next(rows: AsyncIterator[Row]) -> Row:
    return await anext(rows)
