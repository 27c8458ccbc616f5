"""What a supervisor and its workers say to each other about models: requests on a `Channel`.

The supervisor asks a worker to `prepare` a version, to `apply` what is to be served, and which are `unused`. A worker
asks for the `targets` at its start, and for a `change` when an operator has called it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from tidegate.core.model_change import ModelAction, ModelChange
from tidegate.runtime.channel import Channel, Message, RequestRefused
from tidegate.runtime.model_catalog import Host, ModelCatalog, ModelRefused, Target
from tidegate.runtime.model_checker import CheckedModel


class ModelControl(Protocol):
    """Changes what is served, in whichever process decides that."""

    async def change(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Does what an operator asks for. Returns what became of each version, none when there is none."""


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

    async def apply(self, targets: Sequence[Target]) -> None:
        """Serves and retires these versions, and drops all others. Raises ModelRefused."""
        await self._ask({"do": "apply", "targets": [asdict(target) for target in targets]})

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

    async def targets(self) -> list[Target]:
        """What every process is to have loaded. Waits until the supervisor knows."""
        return _decode_targets(await self._channel.ask({"do": "targets"}))

    async def change(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Does what an operator asks for."""
        changes = await self._channel.ask({"do": "change", "action": action, "name": name, "version": version})
        return [ModelChange(**change) for change in changes]


async def answer_worker(request: Message, catalog: ModelCatalog) -> object:
    """The supervisor's answer to a request of a worker."""
    match request:
        case {"do": "targets"}:
            return [asdict(target) for target in catalog.targets]
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
                await host.apply(_decode_targets(request["targets"]))
            case {"do": "unused"}:
                return await host.unused()
            case _:
                raise AssertionError(f"the supervisor asked {request}")
    except ModelRefused as error:
        raise RequestRefused(str(error)) from error
    return None


def _decode_targets(targets: Sequence[Any]) -> list[Target]:
    return [Target(CheckedModel(**target["model"]), target["phase"]) for target in targets]
