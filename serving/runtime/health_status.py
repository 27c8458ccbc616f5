"""What the server says of its health, and of the health of each model, over gRPC's health service."""

import asyncio
from collections.abc import Callable, Mapping

from grpc_health.v1 import health, health_pb2

# How often the models are looked at, in seconds.
WATCH_SECONDS = 0.25
STATUS = health_pb2.HealthCheckResponse


class HealthStatus(health.aio.HealthServicer):  # type: ignore[misc] # grpc ships no types
    """The status of the server under "" and under the name of its service, and of each model under NAME/VERSION.

    Args:
        service: the name of the server's service.

    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._models: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"<HealthStatus of {len(self._models)} models>"

    async def tell(self, *, serving: bool) -> None:
        """Whether the server serves."""
        for service in ("", self._service):
            await self._tell(service, serving=serving)

    async def tell_ready(self, *, ready: bool) -> None:
        """Whether the server takes new work."""
        await self._tell(self._service, serving=ready)

    async def tell_gone(self) -> None:
        """Only a restart helps the server."""
        await self._tell("", serving=False)

    async def watch_models(self, look: Callable[[], Mapping[str, bool]]) -> None:
        """Tells whether each of the models that `look` returns serves, until cancelled."""
        while True:
            now = dict(look())
            for title in self._models.keys() - now.keys():
                await self.set(title, STATUS.SERVICE_UNKNOWN)
            for title, serving in now.items():
                if self._models.get(title) != serving:
                    await self._tell(title, serving=serving)
            self._models = now
            await asyncio.sleep(WATCH_SECONDS)

    async def _tell(self, service: str, *, serving: bool) -> None:
        await self.set(service, STATUS.SERVING if serving else STATUS.NOT_SERVING)
