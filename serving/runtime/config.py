"""The settings of a server, checked once."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ServerConfig:
    """What `tidegate serve` can be told. Only the server and the command line see this object."""

    models: Path
    """Folder of <name>/<version>/model.onnx."""
    host: str = "0.0.0.0"  # noqa: S104 - a container's server is for others to reach
    """Address to listen on, for gRPC and metrics."""
    port: Port = 50051
    """Port of gRPC; 0 picks a free one."""
    metrics_port: Port = 9464
    """Port of /metrics; 0 picks a free one."""
    batch_max: Annotated[int, Field(gt=0, le=4096)] = 256
    """Most timesteps in a batch. A full batch of 256 takes a few hundred microseconds with a small LSTM: beyond that
    latency grows and little is gained."""
    queue_max: Count = 4096
    """Most timesteps that may wait for a batch: sixteen full batches, some milliseconds."""
    live_max: Count = 16384
    """Most live streams of a model. Memory is used only by those that are there."""
    streams_max: Count = 1_000_000
    """Most streams, live and parked."""
    answers_remembered: Annotated[int, Field(gt=0, le=4096)] = 32
    """Answers kept of each stream for repeated timesteps; a client may have that many under way."""
    message_bytes_max: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Longest message that is read."""
    drain_seconds: Seconds = 20.0
    """Longest time that stopping may take before calls are cut; below Kubernetes' 30 s of grace."""
