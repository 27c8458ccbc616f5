"""What the gRPC services need of the server behind them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from serving.core.spec import Key, ModelId, Prediction, Spec, Timestep
from serving.core.streams import Ask, Lease, OpenKind, Phase

if TYPE_CHECKING:
    from serving.core.block import Block  # it loads onnxruntime, and the client loads this file with the wire

# The owner of a stream until callers are told apart by tokens.
DEFAULT_TENANT = "default"

# Why a call let go of its stream.
CloseReason = Literal["closed", "disconnected", "taken_over", "forgotten", "stopping", "protocol"]


@dataclass(frozen=True, slots=True)
class Opening:
    """How an open went."""

    lease: Lease
    kind: OpenKind
    next_step: int
    answers_remembered: int
    owner_changed: bool


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as callers see it."""

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


class Line(Protocol):
    """The way to a model, for the timesteps of the streams that live under it. Each passes here: nothing is looked up."""

    def submit(self, lease: Lease, timestep: Timestep) -> "asyncio.Future[Prediction]":
        """Queues a timestep of a live stream; raises TidegateError when it will not."""

    def answered(self, seconds: float) -> None:
        """Counts a timestep that was answered, from being read to its answer being handed to the network."""


class Desk(Protocol):
    """Opens streams and runs timesteps; every method raises TidegateError when it will not."""

    async def open(self, key: Key, model: str, version: str, ask: Ask) -> Opening:
        """Opens a stream; an empty id in `key` is replaced by one that nobody can guess."""

    def go_on(self, key: Key, model: str, version: str) -> Lease | None:
        """Opens a stream again that `rest` has left in memory, if it still is; nobody asks the store whether it is ours."""

    def rest(self, lease: Lease, *, opened: bool) -> None:
        """Lets go of a stream that is likely to be opened again soon, so that `go_on` may find it.

        `opened` says that the hold came by `open`: it is then counted as closed.
        """

    async def wake(self, lease: Lease) -> None:
        """Makes a parked stream live again that a call has open."""

    def line(self, lease: Lease) -> "Line":
        """Where the timesteps of a stream are queued; the same for as long as the stream is open."""

    def submit_block(self, block: "Block") -> "asyncio.Future[Block]":
        """Queues timesteps of many streams; the future gives the block back when each was run or refused."""

    def store_soon(self, lease: Lease) -> None:
        """Has a stream stored at once, for somebody who is about to wait for many."""

    async def durable(self, lease: Lease, step: int) -> None:
        """Waits until a timestep is stored, which happens at once; StoreBehind when the store does not take it in time."""

    def answered_block(self, block: "Block", seconds: float) -> None:
        """Counts the timesteps of a block that was answered."""

    def watch(self, notice: Callable[[], None]) -> Callable[[], None]:
        """Has `notice` called whenever something was stored; gives what ends that."""

    def leave(self, lease: Lease, reason: CloseReason) -> None:
        """Lets go of a stream, which is kept. Takes effect soon, whether or not anybody waits."""

    async def forget(self, lease: Lease) -> None:
        """Lets go of a stream and drops it."""

    def model(self, name: str, version: str) -> ServedModel:
        """One model; empty strings mean the only one and the newest."""


class Administration(Protocol):
    """Answers operators; every method raises TidegateError when it will not."""

    def models(self) -> list[ServedModel]:
        """The models being served, newest version of each name first."""

    def model(self, name: str, version: str) -> ServedModel:
        """One model; empty strings mean the only one and the newest."""

    async def list(self, tenant: str, prefix: str, after: str, limit: int, phase: Phase | None) -> list[StreamInfo]:
        """Streams in the order of their ids, those after `after`; at most `limit`, those in `phase` only."""

    async def describe(self, key: Key) -> StreamInfo:
        """One stream."""

    async def delete(self, key: Key) -> StreamInfo:
        """Drops a stream and its state."""

    async def export(self, key: Key) -> tuple[bytes, StreamInfo]:
        """A stream's state as a record."""

    async def import_(self, tenant: str, record: bytes, stream_id: str) -> StreamInfo:
        """Makes a stream from a record; an empty id means the one it had."""

    async def fork(self, source: Key, stream_id: str) -> StreamInfo:
        """Makes a stream that starts at another one's state; an empty id is replaced by one that nobody can guess."""
