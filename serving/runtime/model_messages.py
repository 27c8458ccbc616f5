"""What a supervisor and its workers say to each other about models: requests on a `Channel`.

The supervisor asks a worker to `prepare` a version, to `apply` what is to be served, and which are `unused`. A worker
asks for the `versions` at its start, to `join` before it is called, and for a `change` when an operator has called it or
a stream needs a version.
"""

import asyncio
from dataclasses import asdict
from typing import Any, Protocol

from tidegate.core.model_change import ModelAction, ModelChange
from tidegate.runtime.channel import Channel, Message, RequestRefused
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import CheckedModel
from tidegate.runtime.version_set import Host, ModelRefused, Target, VersionName, VersionSet


class ModelControl(Protocol):
    """Changes what is served, in whichever process decides that."""

    async def change(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Does what is asked for. Returns what became of each version, none when there is none."""


class RemoteHost:
    """A worker, as the catalog in the supervisor sees it.

    Args:
        channel: the channel to it.
        number: its number.
        timeout_s: how long it may take to load a version, in seconds.

    """

    def __init__(self, channel: Channel, number: int, timeout_s: float) -> None:
        self._channel = channel
        self._number = number
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<worker {self._number}>"

    async def prepare(self, model: CheckedModel) -> None:
        """Loads a version and warms it up. Raises ModelRefused."""
        await self._ask({"do": "prepare", "model": asdict(model)})

    async def apply(self, versions: VersionSet) -> None:
        """Serves and retires the targets, and drops all others. Raises ModelRefused."""
        await self._ask({"do": "apply", "versions": asdict(versions)})

    async def unused(self) -> list[str]:
        """Which versions have no stream in this process."""
        try:
            return [str(title) for title in await self._ask({"do": "unused"})]
        except ModelRefused:  # it does not answer; it may have streams
            return []

    async def _ask(self, request: Message) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._channel.ask(request)
        except RequestRefused as error:
            raise ModelRefused(f"worker {self._number}: {error}") from error
        except TimeoutError as error:
            raise ModelRefused(f"worker {self._number} has not answered within {self._timeout_s:g} s") from error


class RemoteControl:
    """The catalog in the supervisor, as a worker sees it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def versions(self) -> VersionSet:
        """What every process is to have. Waits until the supervisor knows."""
        return _decode_versions(await self._channel.ask({"do": "versions"}))

    async def join(self) -> None:
        """Has the catalog tell this process from now on what it decides, and catches up with what it has decided."""
        await self._channel.ask({"do": "join"})

    async def change(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Does what is asked for."""
        changes = await self._channel.ask({"do": "change", "action": action, "name": name, "version": version})
        return [ModelChange(**change) for change in changes]


async def answer_worker(request: Message, catalog: ModelCatalog) -> object:
    """The supervisor's answer to a request of a worker, except to `join`."""
    match request:
        case {"do": "versions"}:
            return asdict(catalog.versions)
        case {"do": "change", "action": action, "name": str(name), "version": str(version)}:
            return [asdict(change) for change in await catalog.change(action, name, version)]
    raise AssertionError(f"a worker asked {request}")


async def answer_supervisor(request: Message, host: Host) -> object:
    """A worker's answer to a request of the supervisor."""
    try:
        match request:
            case {"do": "prepare"}:
                await host.prepare(CheckedModel(**request["model"]))
            case {"do": "apply"}:
                await host.apply(_decode_versions(request["versions"]))
            case {"do": "unused"}:
                return await host.unused()
            case _:
                raise AssertionError(f"the supervisor asked {request}")
    except ModelRefused as error:
        raise RequestRefused(str(error)) from error
    return None


def _decode_versions(versions: Any) -> VersionSet:
    targets = [Target(CheckedModel(**target["model"]), target["phase"]) for target in versions["targets"]]
    return VersionSet(targets, [VersionName(*name) for name in versions["on_demand"]])
