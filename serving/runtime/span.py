"""A span of an operation, as those who do the operation see it, whether or not it is recorded."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

# The metadata of a call.
Metadata = Sequence[tuple[str, str | bytes]]


class Span:
    """A span that nobody wants. `runtime.open_telemetry` has the other kind.

    As a context manager it begins and ends the span; what happens inside belongs to it. An exception makes it failed.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def rename(self, operation: str) -> None:
        """Gives the span the name of another operation, when it is known only later what it was."""

    def describe(self, fields: Mapping[str, str | int]) -> None:
        """Adds attributes, under `tidegate.`."""

    def fail(self, reason: BaseException | str) -> None:
        """Marks the span as failed."""


NO_SPAN = Span()
