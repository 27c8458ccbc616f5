"""What a bench is asked to do, checked once."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What one machine of clients can hold: a call of `Predict` costs its client 34 KB.
STREAMS_MAX = 100_000
PROCESSES_MAX = 64
# A process that spreads its streams thinner measures its own sockets.
CONNECTIONS_MAX = 1024
# The most that a block may hold, by the protocol.
BLOCK_MAX = 65_536
# Far above what any server answers; keeps a slip of the finger from being drawn up.
RATE_MAX = 10_000_000.0
SECONDS_MAX = 86_400.0
# A server remembers the last 32 answers of a stream unless it is told otherwise; it says how many, and that holds.
AHEAD_MAX = 4096

Clients = Literal["light", "python"]
Arrivals = Literal["constant", "poisson"]


class Plan(BaseModel):
    """What `tidegate bench` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: str
    """HOST:PORT."""
    client: Clients = "light"
    """Through what: the light client of `frames`, or `serving.client` as users have it."""
    model: str = ""
    """Empty: the only one."""
    version: str = ""
    """Empty: the newest."""
    streams: Annotated[int, Field(ge=1, le=STREAMS_MAX)] = 128
    processes: Annotated[int, Field(ge=1, le=PROCESSES_MAX)] = 2
    connections: Annotated[int, Field(ge=1, le=CONNECTIONS_MAX)] = 2
    """A process spreads its streams over so many."""
    rate: Annotated[float | None, Field(gt=0, le=RATE_MAX)] = None
    """Timesteps a second over all streams, sent when they are due; None: each when its stream's last was answered."""
    arrivals: Arrivals = "constant"
    """How due times follow each other: every stream at its own even beat, or at random."""
    seconds: Annotated[float, Field(gt=0, le=SECONDS_MAX)] = 10.0
    warmup: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = 2.0
    """Seconds before the measured ones, at the same load."""
    think: Annotated[float, Field(ge=0, le=SECONDS_MAX)] = 0.0
    """Seconds between an answer and the stream's next timestep."""
    block: Annotated[int | None, Field(ge=1, le=BLOCK_MAX)] = None
    """Streams a call, and so rows a message of `PredictBlocks`; None: `Predict`."""
    unary: bool = False
    """Each timestep is a call of its own, `PredictOne`."""
    ahead: Annotated[int, Field(ge=1, le=AHEAD_MAX)] = 1
    """Messages under way on a call, without a rate."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of random values that are NaN."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.rate is not None and self.think:
            raise ValueError("--think: a pause after each answer is for a bench without --rate; leave one of them out")
        if self.rate is not None and self.ahead != 1:
            raise ValueError("--ahead: with --rate as much is under way as is due; leave one of them out")
        if self.rate is not None and self.client == "python":
            raise ValueError(
                "--client: python is for a bench without --rate, as it sends the next when it has its answer"
            )
        if self.unary and (self.client != "python" or self.block is not None or self.ahead != 1):
            raise ValueError("--unary: is for --client python, without --block and --ahead")
        if self.rate is None and self.arrivals != "constant":
            raise ValueError("--arrivals: nothing is due at a time of its own without --rate; add one")
        if self.block is not None and self.block > self.streams:
            raise ValueError(f"--block: got {self.block}, expected at most --streams, which is {self.streams}")
        return self

    @property
    def streams_per_call(self) -> list[int]:
        """How many streams each call has: one, or a block of them and the rest in the last."""
        size = self.block or 1
        whole, remainder = divmod(self.streams, size)
        return [size] * whole + [remainder] * (remainder > 0)

    @property
    def calls_by_process(self) -> list[list[int]]:
        """The lanes of each process, as even as can be; a process without any is not started."""
        return [calls for number in range(self.processes) if (calls := self.streams_per_call[number :: self.processes])]

    @property
    def interval_s(self) -> float | None:
        """Seconds between the timesteps of a stream; None without a rate."""
        return None if self.rate is None else self.streams / self.rate
