"""What the gRPC layer needs from the server behind it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from tidegate.core.access import Caller
from tidegate.core.model_change import ModelAction, ModelChange
from tidegate.core.spec import Key, ModelId, Prediction, Spec, Timestep
from tidegate.core.streams import Lease, OpenKind, OpenOptions, Phase
from tidegate.core.swap_policy import Moved

if TYPE_CHECKING:
    from tidegate.core.block import (
        Block,  # importing it loads onnxruntime, and clients import this module with the wire
    )

# Why a call released its stream.
CloseReason = Literal["closed", "disconnected", "taken_over", "forgotten", "stopping", "protocol"]


@dataclass(frozen=True, slots=True)
class OpenResult:
    """The result of an open."""

    lease: Lease
    kind: OpenKind
    next_step: int
    answers_remembered: int
    owner_changed: bool
    moved: Moved = Moved.NOT


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model as callers see it."""

    spec: Spec
    batch_invariant: bool
    card_json: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as an operator sees it."""

    stream_id: str
    phase: Phase
    model: ModelId
    step: int
    durable_step: int
    epoch: int
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version as an operator sees it. `shadow_share` is 0 when it is no shadow, `rewarm_steps` when none are kept.

    `on_demand` tells that it is loaded when somebody asks for it; then `model` has no fingerprint.
    """

    model: ModelId
    is_default: bool
    is_promoted: bool
    policy: str
    rewarm_steps: int
    shadow_share: float
    live_streams: int
    parked_streams: int
    on_demand: bool = False


class DefaultChange(NamedTuple):
    """The default version of a model, and the one that was it before."""

    name: str
    version: str
    previous_version: str


class StepQueue(Protocol):
    """The queue of timesteps for one model. Every timestep passes here, so nothing is looked up."""

    def submit(self, lease: Lease, timestep: Timestep) -> "asyncio.Future[Prediction]":
        """Queues a timestep of a live stream. Raises TidegateError when it is refused at once."""

    def observe_step(self, seconds: float) -> None:
        """Counts an answered timestep. `seconds` is the time from reading it to handing its answer to gRPC."""


class Access(Protocol):
    """Says who makes a call, and what it may do."""

    def identify(self, authorization: str) -> Caller:
        """Who calls, from the `authorization` header of the call. Raises Unauthenticated."""

    def is_valid(self, caller: Caller) -> bool:
        """Whether the token of a caller still gets in."""

    def take_open(self, caller: Caller) -> None:
        """Counts an open of a stream. Raises OpensLimited when the tenant opens faster than it may."""

    def take_steps(self, caller: Caller, count: int) -> None:
        """Counts timesteps. Raises StepsLimited when the tenant sends faster than it may."""

    def require_admin(self, caller: Caller) -> None:
        """Raises PermissionDenied unless the caller may administer models."""


class StreamBackend(Protocol):
    """Opens streams and runs timesteps. Every method raises TidegateError when it refuses."""

    async def open(self, key: Key, model: str, version: str, options: OpenOptions) -> OpenResult:
        """Opens a stream. An empty id in `key` is replaced by a random one that nobody can guess."""

    def acquire_idle(self, key: Key, model: str, version: str) -> Lease | None:
        """Opens a stream that `release_to_idle` has left in memory, if it is still there; else returns None.

        It does not ask the store whether another server has opened the stream since.
        """

    def release_to_idle(self, lease: Lease, *, opened: bool) -> None:
        """Releases a stream that is likely to be opened again soon, so that `acquire_idle` may find it.

        `opened` tells that the lease came from `open`: then the stream is counted as closed.
        """

    async def wake(self, lease: Lease) -> Moved:
        """Makes a stream that a call has open ready for its next timestep.

        It is live then, and has moved to another version if it was to.
        """

    def queue(self, lease: Lease) -> "StepQueue":
        """The queue for the timesteps of a stream; the same for as long as the stream is open."""

    def submit_block(self, block: "Block") -> "asyncio.Future[Block]":
        """Queues timesteps of many streams. The future returns the block when every row has run or was refused."""

    def request_save(self, lease: Lease) -> None:
        """Asks the store to save a stream at once, for a caller that will wait for many streams."""

    async def wait_durable(self, lease: Lease, step: int) -> None:
        """Has a timestep stored at once and waits for it. Raises StoreBehind when the store is too slow."""

    def observe_block(self, block: "Block", seconds: float) -> None:
        """Counts the timesteps of an answered block."""

    def add_listener(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` whenever something was stored. Returns a function that ends this."""

    def release(self, lease: Lease, reason: CloseReason) -> None:
        """Releases a stream, which is kept. Takes effect soon, whether or not anybody waits."""

    async def delete(self, lease: Lease) -> None:
        """Releases a stream and deletes it."""

    async def model(self, name: str, version: str) -> ModelInfo:
        """One model, loaded if need be. An empty name means the only model, an empty version the default one."""


class AdminBackend(Protocol):
    """Answers operators. Every method raises TidegateError when it refuses."""

    def models(self) -> list[ModelInfo]:
        """The models being served, newest version of each name first."""

    def on_demand(self) -> Sequence[tuple[str, str]]:
        """Name and version of those that are loaded when somebody asks for them."""

    async def model(self, name: str, version: str) -> ModelInfo:
        """One model, loaded if need be. An empty name means the only model, an empty version the default one."""

    async def change_models(self, action: ModelAction, name: str, version: str) -> list[ModelChange]:
        """Loads, unloads or looks for versions, in every process. Without a version, all versions of a name."""

    async def list(
        self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None, *, model: str, version: str
    ) -> tuple[list[StreamInfo], str]:
        """Streams in the order of their ids: at most `limit` after `after`, and the id to continue after, empty at the end.

        Only those in `phase`, of `model` and of `version`, as far as these are given.
        """

    async def describe(self, key: Key) -> StreamInfo:
        """One stream."""

    async def delete(self, key: Key) -> StreamInfo:
        """Deletes a stream and its state."""

    async def export(self, key: Key) -> tuple[bytes, StreamInfo]:
        """A stream's state as a checkpoint record."""

    async def import_(self, tenant: str, record: bytes, stream_id: str) -> StreamInfo:
        """Creates a stream from a checkpoint record. An empty id means the one in the record."""

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Creates a stream that starts with the state of another one. An empty id is replaced by a random one."""


class VersionBackend(Protocol):
    """Answers operators about versions. Every method raises TidegateError when it refuses."""

    async def versions(self, name: str, tenant: str) -> list[VersionInfo]:
        """The versions of a model, or of all, with a tenant's streams on each."""

    async def promote(self, name: str, version: str) -> DefaultChange:
        """Makes a version the default; an empty one means the newest, also in future."""

    async def rollback(self, name: str) -> DefaultChange:
        """Undoes the last promotion: its predecessor is the default again."""
