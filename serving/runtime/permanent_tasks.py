"""The tasks that a server needs to run for as long as it serves. One that ends must end the server."""

import asyncio
from collections.abc import Coroutine


class PermanentTasks:
    """Some tasks; a server adds and ends the task of a model while it serves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._failed: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<PermanentTasks: {len(self._tasks)}, {len(self._failed)} have ended>"

    @property
    def failed(self) -> bool:
        """Whether a task has ended that should not have."""
        return bool(self._failed)

    def start(self, coroutine: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Starts a task."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def end(self, task: asyncio.Task[None]) -> None:
        """Cancels a task that is needed no more."""
        self._tasks.discard(task)
        task.cancel()

    async def first_failed(self) -> asyncio.Task[None]:
        """Waits until a task has ended that should not have, and returns it."""
        await self._ended.wait()
        return self._failed[0]

    async def cancel(self, timeout_s: float) -> set[asyncio.Task[None]]:
        """Cancels all tasks and waits for their end. Returns those that have not ended in time."""
        tasks = {*self._tasks}
        for task in tasks:
            self.end(task)
        return (await asyncio.wait(tasks, timeout=timeout_s))[1] if tasks else set()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if task in self._tasks:
            self._failed.append(task)
            self._ended.set()
