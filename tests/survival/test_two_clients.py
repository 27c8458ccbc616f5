"""Two clients of one stream, over servers that come and go: no client gets an answer to the other's timestep.

The model is a running sum. In timestep n one client sends the value of bit 2n, the other that of bit 2n + 1. So each
answer shows whose timesteps it was computed from, and that each was applied once.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis.asyncio import Redis

from tests.examples import examples
from tests.graphs import running_sum, write_model
from tests.rpc_clients import RPC_CLIENTS, PredictOneClient, Refused, RpcClient, channel_to
from tests.servers import address_of, run_server
from tidegate.core.errors import StoreUnavailable
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

# 32-bit floats sum so many timesteps exactly.
STEPS = 11
# Errors that end a client's ownership of the stream: it begins again like a client that opens it for the first time.
LOST = {"TAKEN_OVER", "STATE_LOST"}
# The operations of a server on its store.
OPERATIONS = (
    "load",
    "claim",
    "save",
    "restore",
    "set_residency",
    "request_save",
    "delete",
    "scan",
    "expire",
    "heartbeat",
    "take_notices",
    "count",
)

clients = st.integers(0, 1)
places = st.integers(0, 1)


@dataclass
class Person:
    """A correct client: what it knows of the stream, and its call if it has one.

    `first` is the first timestep of its own that it can still send, 0 while it has not opened the stream. `following`
    is the next to send. `answers` is what it got since it opened the stream as its own, by number.
    """

    number: int
    owner: str
    kind: type[RpcClient]
    way: RpcClient | None = None
    sync: bool = False
    server: Server | None = None
    first: int = 0
    begun: int = 0
    following: int = 1
    answers: dict[int, int] = field(default_factory=dict)

    def value(self, step: int) -> list[float]:
        """What it sends."""
        return [float(1 << (2 * step + self.number))]

    def forget(self) -> None:
        """It has lost the stream."""
        self.first, self.answers = 0, {}


def whose(total: int, step: int) -> list[int]:
    """Which client sent each of the summed timesteps. Each must be there once, and none beyond the last."""
    assert total >> 2 >> 2 * step == 0, f"{total:b}: a timestep beyond {step}"
    pairs = [total >> 2 * number & 3 for number in range(1, step + 1)]
    assert total & 3 == 0
    assert set(pairs) <= {1, 2}, f"{total:b}: a timestep that is missing, or of both"
    return [pair - 1 for pair in pairs]


class TwoClients(RuleBasedStateMachine):
    """Two servers on a store, two clients."""

    state: str
    root: Path
    seen: Counter[str]

    @initialize(
        owners=st.sampled_from([("ann", "bob"), ("ann", ""), ("", "")]),
        kinds=st.tuples(st.sampled_from(RPC_CLIENTS), st.sampled_from(RPC_CLIENTS)),
    )
    def begin(self, owners: tuple[str, str], kinds: tuple[type[RpcClient], type[RpcClient]]) -> None:
        """Starts two servers on an empty store."""
        self.folder = TemporaryDirectory()
        self.people = [Person(number, owners[number], kinds[number]) for number in range(2)]
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.cut_off: list[tuple[Any, dict[str, Any]]] = []
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        address = type(self).state
        if address == "sqlite:":
            address = f"sqlite://{self.folder.name}/state.db"
        elif address != "memory:":
            async with Redis.from_url(address) as redis:
                await redis.flushall()
        self.address = address
        self.servers = [await self._server() for _ in range(1 if address == "memory:" else 2)]

    async def _server(self) -> tuple[Server, Any]:
        server = await self.stack.enter_async_context(
            run_server(type(self).root, state=self.address, checkpoint_every="10ms")
        )
        return server, await self.stack.enter_async_context(channel_to(address_of(server)))

    @rule(number=clients, place=places, sync=st.booleans())
    def open(self, number: int, place: int, sync: bool) -> None:
        """A client opens the stream: it repeats timesteps without an answer, and sends again those that were not applied."""
        self.runner.run(self._open(self.people[number], place, sync))

    @rule(number=clients, place=places)
    def step(self, number: int, place: int) -> None:
        """A client sends its next timestep; it opens the stream first if it has no call."""
        self.runner.run(self._step(self.people[number], place))

    @rule(number=clients, place=places)
    def lose(self, number: int, place: int) -> None:
        """A client sends its next timestep, and its connection breaks: the timestep was applied or not."""
        self.runner.run(self._lose(self.people[number], place))

    @rule(number=clients)
    def repeat(self, number: int) -> None:
        """A client sends its last timestep again."""
        self.runner.run(self._repeat(self.people[number]))

    @rule(number=clients)
    def hang_up(self, number: int) -> None:
        """A client's connection breaks while no timestep is in flight."""
        self.runner.run(self._hang_up(self.people[number]))

    @rule(place=places, dead=st.booleans())
    def crash(self, place: int, dead: bool) -> None:
        """A server loses its store, and another takes its place. If it is not dead, its clients stay connected."""
        if self.address != "memory:":
            self.runner.run(self._crash(place, dead))

    @rule()
    def wake(self) -> None:
        """Servers that were cut off reach the store again, and try to save."""
        for store, operations in self.cut_off:
            for name, operation in operations.items():
                setattr(store, name, operation)
        self.cut_off.clear()

    async def _open(self, person: Person, place: int, sync: bool) -> None:
        if person.kind is PredictOneClient:
            return
        await self._hang_up(person)
        server, channel = self.servers[place % len(self.servers)]
        person.way, person.server, person.sync = person.kind(channel), server, sync
        durability = pb.DURABILITY_SYNC if sync else pb.DURABILITY_ASYNC
        try:
            following = await person.way.open(owner=person.owner, resume_from=person.first, durability=durability)
        except Refused as refused:
            if refused.ending.reason not in LOST:
                raise
            self.seen[refused.ending.reason] += 1
            person.forget()
            await self._hang_up(person)
            return
        if not person.first:
            person.first = person.begun = person.following = following
        for step in range(person.first, person.following):
            if (step >= following or step not in person.answers) and not await self._ask(person, step):
                return

    async def _step(self, person: Person, place: int) -> None:
        if person.following > STEPS:
            return
        if person.kind is PredictOneClient:
            person.way = PredictOneClient(self.servers[place % len(self.servers)][1])
        if person.way is None:
            await self._open(person, place, sync=False)
        if person.way is not None and person.following <= STEPS and await self._ask(person, person.following):
            person.following += 1

    async def _lose(self, person: Person, place: int) -> None:
        if person.following > STEPS:
            return
        if person.kind is PredictOneClient:
            person.way = PredictOneClient(self.servers[place % len(self.servers)][1])
        if person.way is None:
            return
        try:
            await person.way.send(person.value(person.following), person.following)
        except Refused as refused:  # before
            await self._refused(person, refused)
            return
        await asyncio.sleep(0)
        await self._hang_up(person)
        if person.kind is not PredictOneClient:
            person.following += 1

    async def _repeat(self, person: Person) -> None:
        if person.way is not None and person.following - 1 in person.answers:
            await self._ask(person, person.following - 1)

    async def _hang_up(self, person: Person) -> None:
        if person.way is not None:
            await person.way.cut()
            person.way = None

    async def _crash(self, place: int, dead: bool) -> None:
        server, _ = self.servers[place]
        store: Any = server.stream_service._store
        self.cut_off.append((store, {name: getattr(store, name) for name in OPERATIONS}))
        for name in OPERATIONS:
            setattr(store, name, _unreachable)
        for person in self.people:
            if person.server is server and (dead or person.sync):
                await self._hang_up(person)
        self.servers[place] = await self._server()

    async def _ask(self, person: Person, step: int) -> bool:
        """Sends a timestep and checks the answer. Returns False when the client has lost its call or the stream."""
        assert person.way is not None
        try:
            outputs, duplicate = await person.way.step(person.value(step), step)
        except Refused as refused:
            await self._refused(person, refused)
            return False
        total = int(np.frombuffer(outputs, "<f4").item())
        history = whose(total, step)
        assert history[step - 1] == person.number, f"client {person.number} was given the other's answer to {step}"
        self.seen["repeat" if duplicate else "answer"] += 1
        if person.kind is not PredictOneClient and person.owner:
            # A client with an owner token that got no error had the stream for itself.
            assert history[person.begun - 1 :] == [person.number] * (step - person.begun + 1)
            assert person.answers.get(step, total) == total
        person.answers[step] = total
        if person.sync:
            person.first = max(person.first, step + 1)
        return True

    async def _refused(self, person: Person, refused: Refused) -> None:
        """Reacts to a refusal as a client does."""
        ending = refused.ending
        self.seen[ending.reason] += 1
        if ending.reason == "STORE_UNAVAILABLE":  # the server is cut off: the client retries at another
            assert ending.action == "RETRY", refused
            await self._hang_up(person)
            return
        if person.kind is PredictOneClient:
            assert ending.reason in {"VALUES_DIFFER", "STEP_GAP", "STREAM_NOT_FOUND"}, refused
            # It has lost count: it continues where the stream is.
            person.following = {
                "VALUES_DIFFER": person.following + 1,
                "STEP_GAP": ending.next_step,
                "STREAM_NOT_FOUND": 1,
            }[ending.reason]
            return
        if ending.reason == "VALUES_DIFFER":
            assert not person.owner, "an owner that had the stream for itself is told that its values differ"
            person.forget()
        else:
            # A request that crosses the end of its call is INTERNAL to gRPC, without a message of the server. Such a
            # status tells nothing about the stream: the client opens it again, and gets the reason.
            assert ending.reason == "TAKEN_OVER" or (ending.code, ending.reason) == (grpc.StatusCode.INTERNAL, ""), (
                refused
            )
        await self._hang_up(person)

    def teardown(self) -> None:
        """Lets all servers reach the store, so that they stop cleanly."""
        self.wake()
        for person in self.people:
            self.runner.run(self._hang_up(person))
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()


async def _unreachable(*_: Any) -> Any:
    raise StoreUnavailable("the store", "is cut off")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_no_caller_gets_the_answer_of_another(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Opens, timesteps, repeats, crashes and returns in any order: each answer belongs to the values that its client sent."""
    state = {"memory": "memory:", "sqlite": "sqlite:"}.get(kind) or request.getfixturevalue("redis_server").address
    seen: Counter[str] = Counter()
    root = write_model(tmp_path / "models", running_sum())
    machine = type("Machine", (TwoClients,), {"state": state, "root": root, "seen": seen})
    # One example starts servers, which set its pace.
    slow = settings(max_examples=examples(12), stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=slow)
    assert seen["answer"] > 0
    assert seen["TAKEN_OVER"] + seen["VALUES_DIFFER"] > 0, f"the two never met: {seen}"
