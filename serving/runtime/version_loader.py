"""Finds versions that callers name, and loads those that are on disk only: see `runtime.current_versions`."""

from collections.abc import Awaitable, Callable

from tidegate.core.errors import Stopping
from tidegate.runtime.channel import ChannelClosed
from tidegate.runtime.model_messages import ModelControl
from tidegate.runtime.repository import Repository, ServedModel
from tidegate.runtime.version_set import VersionName


class VersionLoader:
    """Loads versions on demand, in every process.

    Args:
        repository: the models of this process.
        control: decides what is served.

    Attributes:
        look: called when a version was loaded: its streams may be among those that move to the default version.

    """

    def __init__(self, repository: Repository, control: ModelControl) -> None:
        self._repository = repository
        self._control = control
        self.look: Callable[[], Awaitable[None]]

    def __repr__(self) -> str:
        return f"<VersionLoader of {self._repository!r}>"

    async def find(self, name: str, version: str, *, begun: bool = False) -> ServedModel:
        """One model, as `Repository.find` finds it, once it is loaded. Raises what that raises, and Stopping."""
        await self.load(name, version)
        return self._repository.find(name, version, begun=begun)

    async def load(self, name: str, version: str) -> None:
        """Loads a version that waits for somebody to ask for it, and does nothing for any other.

        Whether it is served afterwards, `Repository.find` knows: the catalog may have refused it. Raises Stopping when
        the process that decides has ended.
        """
        if not self._repository.on_demand:
            return
        wanted = VersionName(name or self._repository.only_name, version)
        if wanted in self._repository.on_demand:
            try:
                await self._control.change("demand", *wanted)
            except ChannelClosed as error:
                raise Stopping from error
            await self.look()
