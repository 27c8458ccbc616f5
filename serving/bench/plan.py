"""The settings of a bench run."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# One machine can run this many: a call of `Predict` needs 34 KB in the client.
STREAMS_MAX = 100_000
PROCESSES_MAX = 64
# With more connections a process would mostly measure its own sockets.
CONNECTIONS_MAX = 1024
# The limit of the protocol for a block.
BLOCK_MAX = 65_536
# Far above what a server can answer. It catches typing errors.
RATE_MAX = 10_000_000.0
SECONDS_MAX = 86_400.0
# A server remembers 32 answers of a stream by default. It reports its number, which is the actual limit.
AHEAD_MAX = 4096

Clients = Literal["light", "python"]
Arrivals = Literal["constant", "poisson"]


class Plan(BaseModel):
    """The options of `tidegate bench` that describe the load."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: str
    """HOST:PORT."""
    client: Clients = "light"
    """The light client of `http2`, or `tidegate.client`, which users have."""
    model: str = ""
    """Empty: the only model."""
    version: str = ""
    """Empty: the newest version."""
    streams: Annotated[int, Field(ge=1, le=STREAMS_MAX)] = 128
    processes: Annotated[int, Field(ge=1, le=PROCESSES_MAX)] = 2
    connections: Annotated[int, Field(ge=1, le=CONNECTIONS_MAX)] = 2
    """The number of connections of each process."""
    rate: Annotated[float | None, Field(gt=0, le=RATE_MAX)] = None
    """Timesteps per second over all streams, in an open loop. None: a closed loop."""
    arrivals: Arrivals = "constant"
    """The due times of a stream: at a fixed interval, or random."""
    seconds: Annotated[float, Field(gt=0, le=SECONDS_MAX)] = 10.0
    warmup: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = 2.0
    """Seconds of the same load before the measurement."""
    think: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = 0.0
    """Seconds between an answer and the stream's next timestep."""
    block: Annotated[int | None, Field(ge=1, le=BLOCK_MAX)] = None
    """Streams of a call, and rows of a message of `PredictBlocks`. None: `Predict`."""
    unary: bool = False
    """Each timestep is a call of `PredictOne`."""
    ahead: Annotated[int, Field(ge=1, le=AHEAD_MAX)] = 1
    """Messages in flight on a call, in a closed loop."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of random values that are NaN."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.rate is not None and self.think:
            raise ValueError("--think: cannot be used with --rate; leave one of them out")
        if self.rate is not None and self.ahead != 1:
            raise ValueError("--ahead: cannot be used with --rate; leave one of them out")
        if self.rate is not None and self.client == "python":
            raise ValueError("--client: python always runs a closed loop and cannot be used with --rate")
        if self.unary and (self.client != "python" or self.block is not None or self.ahead != 1):
            raise ValueError("--unary: needs --client python, without --block and --ahead")
        if self.rate is None and self.arrivals != "constant":
            raise ValueError("--arrivals: poisson needs --rate")
        if self.block is not None and self.block > self.streams:
            raise ValueError(f"--block: got {self.block}, expected at most --streams, which is {self.streams}")
        return self

    @property
    def streams_per_call(self) -> list[int]:
        """The number of streams of each call: one, or those of a block. The last block may be smaller."""
        size = self.block or 1
        whole, remainder = divmod(self.streams, size)
        return [size] * whole + [remainder] * (remainder > 0)

    @property
    def calls_by_process(self) -> list[list[int]]:
        """The calls of each process, divided evenly. A process without calls is not started."""
        return [calls for number in range(self.processes) if (calls := self.streams_per_call[number :: self.processes])]

    @property
    def interval_s(self) -> float | None:
        """Seconds between the timesteps of a stream; None without a rate."""
        return None if self.rate is None else self.streams / self.rate
