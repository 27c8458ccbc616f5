"""What this protocol needs from the server, beside streams: whether it is ready, and what its models have done."""

from dataclasses import dataclass
from typing import Protocol

from tidegate.core.spec import Spec


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What a model has done in this process. Times are sums, in seconds.

    `applied` and `failed` count timesteps, `batches` and `batch_seconds` batches. `queued` timesteps have waited for
    `queue_seconds`. `step_seconds` is the time from reading a timestep to handing its answer to gRPC.
    """

    applied: int
    failed: int
    batches: int
    queued: int
    step_seconds: float
    queue_seconds: float
    batch_seconds: float


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Limits that clients can read: timesteps in a batch, live streams of a model, and when a stream is forgotten.

    `forget_after_s` is in seconds; 0 for never. `counts_all` tells whether `ServerStatus.counts` has all timesteps of
    the server: with several workers, each counts its own.
    """

    batch_max: int
    live_max: int
    forget_after_s: float
    counts_all: bool


class ServerStatus(Protocol):
    """The state of the server."""

    def is_ready(self) -> bool:
        """Whether the server accepts new streams."""

    def counts(self, spec: Spec) -> ModelCounts:
        """What a served model has done so far."""
