"""What the catalog has every serving process do: which versions to load and serve, and which to load on demand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from tidegate.runtime.model_checker import CheckedModel


class ModelRefused(Exception):
    """A process could not load a version. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Target:
    """A version that every process has loaded, or is to load. `phase` is a value of `repository.ModelPhase`."""

    model: CheckedModel
    phase: Literal["serving", "retiring"]


class VersionName(NamedTuple):
    """The name of a model and a version of it."""

    name: str
    version: str

    @property
    def title(self) -> str:
        """Name and version in the form NAME/VERSION."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class VersionSet:
    """What a process is to have.

    Attributes:
        targets: the versions that it has loaded, or is to load.
        on_demand: those on disk that are loaded when somebody asks for them.

    """

    targets: Sequence[Target]
    on_demand: Sequence[VersionName]


class Host(Protocol):
    """A serving process, as the catalog sees it. Every method raises ChannelClosed when the process has ended."""

    async def prepare(self, model: CheckedModel) -> None:
        """Loads a version and warms it up. Raises ModelRefused."""

    async def apply(self, versions: VersionSet) -> None:
        """Serves and retires the targets, and drops all others. Raises ModelRefused."""

    async def unused(self) -> list[str]:
        """Which versions have no stream in this process."""
