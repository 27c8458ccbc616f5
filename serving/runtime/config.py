"""The settings of a server, checked once."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from serving.runtime.cores import usable_cores
from serving.runtime.host import checked, is_unix

# The store that is of one process.
MEMORY = "memory:"
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: object) -> object:
    """Seconds from "200ms", "30s", "15m", "12h", "7d" or a plain number of seconds; ValueError for anything else."""
    if not isinstance(text, str):
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if found is None:
        raise ValueError("expected a number with a unit, such as 200ms, 30s, 15m, 12h or 7d")
    return float(found[1]) * UNITS_S[found[2] or "s"]


Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(gt=0)]
Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ServerConfig:
    """What `tidegate serve` can be told. Only the server and the command line see this object."""

    models: Path
    """Folder of <name>/<version>/model.onnx."""
    host: str = "0.0.0.0"  # noqa: S104 - a container's server is for others to reach
    """Where to listen for gRPC: a name or an address of either family, or unix:PATH. 0.0.0.0 and :: are all of both families."""
    port: Port = 50051
    """Port of gRPC; 0 picks a free one."""
    metrics_port: Port = 9464
    """Port of /metrics; 0 picks a free one."""
    metrics_host: str = ""
    """Where to listen for /metrics. Empty: as for gRPC; localhost beside a unix socket, which is not for others either."""
    batch_max: Annotated[int, Field(gt=0, le=4096)] = 256
    """Most timesteps in a batch. A full batch of 256 takes a few hundred microseconds with a small LSTM: beyond that
    latency grows and little is gained."""
    queue_max: Count = 4096
    """Most timesteps that may wait for a batch: sixteen full batches, some milliseconds."""
    live_max: Count = 16384
    """Most live streams of a model, in each worker. Memory is used only by those that are there."""
    peer_live_max: Annotated[int, Field(ge=0)] = 0
    """Most live streams of a model that one connection may hold, so that none takes all. 0: seven eighths of `live_max`."""
    streams_max: Count = 1_000_000
    """Most streams, live and parked. A worker learns once a minute what others have opened: until then it may let in more."""
    answers_remembered: Annotated[int, Field(gt=0, le=4096)] = 32
    """Answers kept of each stream for repeated timesteps; a client may have that many under way."""
    message_bytes_max: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Longest message that is read."""
    drain_after: Duration = 20.0
    """Longest time that stopping may take before calls are cut, in seconds; below Kubernetes' 30 s of grace."""
    state: str = ""
    """Where streams rest: memory:, sqlite:///PATH or redis://HOST:PORT/DB. Empty: SQLite in `data_dir`."""
    data_dir: Path = Path("data")
    """Folder for what the server writes."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that share the port and the store; one keeps one core busy. 0: as many as there are cores to use, and one
    with `memory:` or a unix socket, which are of one process. A thousand is far beyond what one machine's disk can keep up with."""
    checkpoint_every: Annotated[Duration, Field(gt=0)] = 0.2
    """How often state is stored, in seconds: what a client has to send again after a crash."""
    park_after: Duration = 60.0
    """How long a stream that is open may be silent before it leaves memory, in seconds."""
    forget_after: Duration = 7 * 86400.0
    """How long a stream may be silent before it is forgotten, in seconds; 0 for ever."""
    ready_lag: Duration = 5.0
    """How far the store may be behind before the server says that it is not ready, in seconds after `checkpoint_every`."""
    lag_max: Duration = 30.0
    """How far the store may be behind before new timesteps are refused, in seconds after `checkpoint_every`."""

    @property
    def state_address(self) -> str:
        """Where streams rest, spelled out."""
        return self.state or f"sqlite://{(self.data_dir / 'tidegate.db').absolute()}"

    @property
    def live_max_of_a_peer(self) -> int:
        """How many live streams of a model one connection may hold."""
        return self.peer_live_max or self.live_max - self.live_max // 8

    @property
    def metrics_address(self) -> str:
        """Where to listen for /metrics, spelled out."""
        return self.metrics_host or ("localhost" if is_unix(self.host) else self.host)

    @property
    def worker_count(self) -> int:
        """How many processes serve."""
        return self.workers or (1 if self.state == MEMORY or is_unix(self.host) else usable_cores())

    @field_validator("host")
    @classmethod
    def _can_be_a_host(cls, host: str) -> str:
        return checked(host)

    @field_validator("metrics_host")
    @classmethod
    def _can_be_a_host_with_a_port(cls, host: str) -> str:
        if is_unix(host):
            raise ValueError("expected a name or an address: a unix socket is for gRPC alone")
        return checked(host) if host else host

    @field_validator("workers")
    @classmethod
    def _share_a_port(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and is_unix(info.data.get("host", "")):
            raise ValueError("one process alone can listen on a unix socket; say --workers 1, or listen on an address")
        return workers

    @field_validator("workers")
    @classmethod
    def _share_a_store(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and info.data.get("state") == MEMORY:
            raise ValueError(
                f"each would keep streams of its own in {MEMORY}; say --workers 1, or --state sqlite:///PATH or redis://..."
            )
        return workers
