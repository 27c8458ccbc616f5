"""The progress of a training: a bar with loss and time left on a terminal, otherwise a plain line now and then."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tidegate.training.learning.epoch import Epoch, progress_line

# Often enough to show progress, seldom enough not to fill a log.
LINE_EVERY_S = 5.0


class FitProgress:
    """A context manager with the callbacks of `pipeline.train`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.printed_s = -LINE_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def show(self, epoch: Epoch, best: Epoch) -> None:
        """Show an epoch."""
        if self.console.is_terminal:
            self._move_bar(epoch, best)
        elif time.monotonic() - self.printed_s >= LINE_EVERY_S:
            self.printed_s = time.monotonic()
            self.note(progress_line(epoch, best))

    def note(self, text: str) -> None:
        """Print a sentence; the bar ends, because the training is over."""
        self._end_bar()
        self.console.print(text, highlight=False, markup=False)

    def _move_bar(self, epoch: Epoch, best: Epoch) -> None:
        numbers: dict[str, Any] = {"epoch": epoch.number, "loss": epoch.loss, "score": epoch.score, "best": best.score}
        if self.bar is None:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn(
                    "loss {task.fields[loss]:.4f}  score {task.fields[score]:.4f}  best {task.fields[best]:.4f}"
                ),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("fit", total=1.0, **numbers)
        self.bar.update(self.task, completed=epoch.progress, **numbers)

    def _end_bar(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
