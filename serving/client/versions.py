"""Asks about the versions of models, and changes which one is the default."""

from dataclasses import dataclass

from tidegate.client import arguments
from tidegate.client.connection import Connection
from tidegate.v1 import tidegate_pb2 as pb


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, as an operator sees it.

    `policy` is what happens to streams on other versions than the default: "pin", "rewarm" or "reset". `rewarm_steps` is how
    many timesteps are kept of each stream, 0 when none. `shadow_share` is the share of streams that also run under it unseen.
    `on_demand` tells that the server loads it when somebody asks for it; until then it has no `fingerprint`.
    """

    model: str
    version: str
    fingerprint: str
    is_default: bool
    is_promoted: bool
    policy: str
    rewarm_steps: int
    shadow_share: float
    live_streams: int
    parked_streams: int
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class DefaultChange:
    """The default version of a model, and the one that was it before."""

    version: str
    previous_version: str


class VersionCalls:
    """The requests of a client that are about versions."""

    _connection: Connection

    async def versions(self, model: str = "") -> list[Version]:
        """The versions of a model, or of all, newest first, with the streams on each.

        Raises:
            ModelNotFound: the model is not served.

        """
        request = pb.ListVersionsRequest(name=arguments.text("model", model))
        answer = await self._connection.call_unary("ListVersions", request)
        return [
            Version(**{name: getattr(version, name) for name in Version.__dataclass_fields__})
            for version in answer.versions
        ]

    async def promote(self, model: str, version: str) -> DefaultChange:
        """Makes a version the default of its model. An empty version: from now on the newest is the default.

        Streams on other versions move there if the policy of the model says so.

        Raises:
            ModelNotFound: the version is not served.
            ClientError: the server cannot write its models folder.

        """
        request = pb.PromoteModelRequest(
            name=arguments.text("model", model), version=arguments.text("version", version)
        )
        answer = await self._connection.call_unary("PromoteModel", request)
        return DefaultChange(answer.version, answer.previous_version)

    async def rollback(self, model: str) -> DefaultChange:
        """Undoes the last promotion: its predecessor is the default again; without one, the version before the default.

        Raises as `promote`.
        """
        request = pb.RollbackModelRequest(name=arguments.text("model", model))
        answer = await self._connection.call_unary("RollbackModel", request)
        return DefaultChange(answer.version, answer.previous_version)
