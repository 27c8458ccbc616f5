"""What the life of a server tells others, whichever process leads it: that it is ready, or how it failed."""

from collections.abc import Sequence


class StartFailed(Exception):
    """The server could not start: a port is taken. Models that cannot be served raise ContractBroken."""


class StopFailed(Exception):
    """The server stopped with state that is not stored. Clients still have the timesteps, and will send them again."""


def ready_line(host: str, grpc_port: int, metrics_port: int, models: Sequence[str]) -> str:
    """What is printed when the server is ready; other programs wait for it and read the ports from it."""
    return f"ready: grpc={host}:{grpc_port} metrics=http://{host}:{metrics_port}/metrics models={','.join(models)}"
