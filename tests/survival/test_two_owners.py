"""Two clients that know nothing of each other and send timesteps of one stream: neither is given the other's answer for its own."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos.tidegate.v1 import tidegate_pb2 as pb
from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from tests.fleet import Site, rows_of
from tests.support import PATIENCE, Ending, RawBlocks, RawCall, pack, read_ending, replay, timestep

STREAM = "a"
SYNC = pb.DURABILITY_SYNC
# Timesteps of the one client, and the sixth of the other.
ROWS = rows_of(0, 7)
OTHER = rows_of(1, 1)[0]
# The whole of a test; servers take a second or two to start, on a slow machine several.
PATIENCE_S = 60.0


class Refused(Exception):
    """The server refused an open or a timestep, or the call ended."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"{ending.reason}: {ending.message}")
        self.ending = ending


def refused(error: pb.Error) -> Refused:
    """A refusal that came within a call, as one at its end."""
    reason, action = pb.Error.Reason.Name(error.reason), pb.Error.Action.Name(error.action)
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    words = (reason.removeprefix("REASON_"), action.removeprefix("ACTION_"))
    return Refused(Ending(code, error.message, words[0], "", None, (), words[1], error.next_step))


class Way:
    """A client's hold on the stream by one of the calls; `step` gives the packed outputs, and whether it was a repeat.

    What the server refuses raises Refused.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def open(self, **more: Any) -> int:
        """Opens it; the number of the next timestep."""
        raise NotImplementedError

    async def send(self, row: Any, number: int) -> None:
        """Sends a timestep and waits for no answer."""
        raise NotImplementedError

    async def answer(self) -> tuple[bytes, bool]:
        """The answer to the timestep that was sent."""
        raise NotImplementedError

    async def close(self) -> None:
        """Closes it."""

    async def cut(self) -> None:
        """The connection breaks."""
        raise NotImplementedError

    async def step(self, row: Any, number: int) -> tuple[bytes, bool]:
        """Has a timestep answered."""
        await self.send(row, number)
        return await self.answer()


class Predict(Way):
    """By `Predict`."""

    async def open(self, **more: Any) -> int:
        """Opens it."""
        self.raw = RawCall(self.channel)
        await self.raw.send(pb.PredictRequest(open=pb.Open(stream_id=STREAM, **more)))
        return (await self._read()).opened.next_step

    async def send(self, row: Any, number: int) -> None:
        """Sends a timestep."""
        await self.raw.send(timestep(*np.asarray(row).tolist(), step=number))

    async def answer(self) -> tuple[bytes, bool]:
        """Its answer."""
        response = await self._read()
        if response.HasField("error"):
            raise refused(response.error)
        return response.prediction.outputs[0], response.prediction.duplicate

    async def close(self) -> None:
        """Closes it."""
        await self.raw.send(pb.PredictRequest(close=pb.Close()))
        assert (await self._read()).HasField("closed")

    async def cut(self) -> None:
        """Ends the call."""
        self.raw.call.cancel()

    async def _read(self) -> pb.PredictResponse:
        while True:
            async with asyncio.timeout(PATIENCE):
                try:
                    response = await self.raw.call.read()
                except grpc.aio.AioRpcError:
                    response = grpc.aio.EOF
            if response is grpc.aio.EOF:
                raise Refused(await self.raw.ending())
            if response.WhichOneof("kind") != "durable":
                return response


class Blocks(Way):
    """By `PredictBlocks`."""

    async def open(self, **more: Any) -> int:
        """Opens it, as the only one of the call."""
        self.raw = RawBlocks(self.channel)
        if "resume_from" in more:
            more["resume_from"] = [more["resume_from"]]
        opened = await self.raw.open(STREAM, **more)
        if opened.errors:
            raise refused(opened.errors[0].error)
        self.handle = opened.handles[0]
        return opened.next_steps[0]

    async def send(self, row: Any, number: int) -> None:
        """Sends a block of one row."""
        block = pb.Block(
            handles=np.array([self.handle], "<u4").tobytes(),
            steps=np.array([number], "<u8").tobytes(),
            values=np.asarray(row, "<f4").tobytes(),
        )
        await self.raw.send(pb.PredictBlocksRequest(block=block))

    async def answer(self) -> tuple[bytes, bool]:
        """Its answer; what ended the stream is told beside it."""
        while (response := await self.raw.read()).WhichOneof("kind") == "durable":
            pass
        if response.HasField("ended"):
            raise refused(response.ended.error)
        block = response.block
        if block.HasField("refused"):
            raise refused(block.refused)
        if block.errors:
            raise refused(block.errors[0].error)
        return block.outputs[0], bool(block.duplicate_rows)

    async def close(self) -> None:
        """Closes the stream, then the call."""
        closed = await self.raw.close(self.handle)
        assert not closed.errors
        await self.raw.call.done_writing()
        assert (await self.raw.ending()).code is grpc.StatusCode.OK

    async def cut(self) -> None:
        """Ends the call."""
        self.raw.call.cancel()


class One(Way):
    """By `PredictOne`, which opens nothing."""

    sending: "asyncio.Task[pb.PredictOneResponse] | None" = None

    async def open(self, **_: Any) -> int:
        """Has nothing to do, and is told nothing."""
        return 0

    async def send(self, row: Any, number: int) -> None:
        """Calls."""
        stub: Any = pb_grpc.TidegateServiceStub(self.channel)
        request = pb.PredictOneRequest(stream_id=STREAM, step=number, values=pack(*np.asarray(row).tolist()))
        self.sending = asyncio.create_task(_call(stub, request))

    async def answer(self) -> tuple[bytes, bool]:
        """What the call gives."""
        assert self.sending is not None
        try:
            prediction = (await self.sending).prediction
        except grpc.aio.AioRpcError as error:
            raise Refused(read_ending(error.code(), error.details(), error.trailing_metadata())) from error
        return prediction.outputs[0], prediction.duplicate

    async def cut(self) -> None:
        """Ends the call."""
        if self.sending is not None:
            self.sending.cancel()


async def _call(stub: Any, request: pb.PredictOneRequest) -> pb.PredictOneResponse:
    return await stub.PredictOne(request, timeout=PATIENCE)


WAYS = (Predict, Blocks, One)


@asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@pytest.fixture(params=["memory", "sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store."""
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite://{tmp_path / 'state.db'}"
        case _:
            return str(request.getfixturevalue("redis_server").address)


@pytest.fixture
async def overtaken(state: str, site: Callable[..., Site], graph: bytes) -> Callable[..., Any]:
    """Brings the stream to where another client has sent its own sixth timestep; gives where the first one comes back.

    The first client has five timesteps answered and stored, and its server then hangs and is killed while the sixth is on its
    way; in the memory of one server there is no other, and the sixth is lost on its way there.
    """
    truth = [answer["forecast"].tobytes() for answer in replay(graph, [*ROWS[:5], OTHER, ROWS[6]])]
    alone = state == "memory:"
    here = site(state=state)
    there = here if alone else site(state=state)
    await asyncio.gather(*(one.start() for one in dict.fromkeys((here, there))))

    @asynccontextmanager
    async def bring(way: type[Way], owner: str) -> AsyncIterator[grpc.aio.Channel]:
        async with asyncio.timeout(PATIENCE_S), channel_to(here.address) as first, channel_to(there.address) as second:
            mine, theirs = way(first), way(second)
            await mine.open(owner=owner, durability=SYNC)
            assert [(await mine.step(row, number))[0] for number, row in enumerate(ROWS[:5], 1)] == truth[:5]
            if alone:
                await mine.cut()
            else:
                here.send(signal.SIGSTOP)
                await mine.send(ROWS[5], 6)
            assert await theirs.open(owner="the other") in (0, 6)
            assert await theirs.step(OTHER, 6) == (truth[5], False)
            await theirs.close()
            if not alone:
                await here.kill()
            yield second
            # The other's history stands, and goes on; it is still the owner, unless one who names none has opened the stream.
            again = way(second)
            assert await again.open(owner="the other", **({"resume_from": 6} if owner else {})) in (0, 7)
            assert await again.step(OTHER, 6) == (truth[5], True)
            assert await again.step(ROWS[6], 7) == (truth[6], False)

    return bring


@pytest.mark.parametrize("way", [Predict, Blocks])
async def test_the_first_owner_is_told_when_it_comes_back(overtaken: Callable[..., Any], way: type[Way]) -> None:
    """Its open, from the timestep that it has no answer to, is refused as TAKEN_OVER, and does not take the stream."""
    async with overtaken(way, "the first") as channel:
        with pytest.raises(Refused) as caught:
            await way(channel).open(owner="the first", resume_from=6)
        ending = caught.value.ending
        assert (ending.code, ending.reason, ending.action) == (grpc.StatusCode.ABORTED, "TAKEN_OVER", "STREAM_LOST")


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_without_an_owner_is_not_given_the_others_answer(
    overtaken: Callable[..., Any], way: type[Way]
) -> None:
    """Its repeat is refused as VALUES_DIFFER: the answer that is remembered was computed from other values."""
    async with overtaken(way, "") as channel:
        mine = way(channel)
        if way is not One:
            with_none: Sequence[dict[str, Any]] = ({"resume_from": 6}, {})
            for more in with_none:
                assert await mine.open(**more) == 7
        with pytest.raises(Refused) as caught:
            await mine.step(ROWS[5], 6)
        ending = caught.value.ending
        assert (ending.code, ending.reason, ending.action) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "VALUES_DIFFER",
            "STREAM_LOST",
        )
        await mine.cut()


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_wakes_up_answers_for_nobody_else(
    state: str, site: Callable[..., Site], graph: bytes, way: type[Way]
) -> None:
    """A timestep that a hanging server is given when another client's was stored elsewhere is refused when it goes on."""
    if state == "memory:":
        pytest.skip("there is no other server on it")
    truth = [answer["forecast"].tobytes() for answer in replay(graph, [*ROWS[:5], OTHER, ROWS[6]])]
    here, there = site(state=state), site(state=state)
    await asyncio.gather(here.start(), there.start())
    async with asyncio.timeout(PATIENCE_S), channel_to(here.address) as first, channel_to(there.address) as second:
        mine, theirs = way(first), way(second)
        await mine.open(owner="the first", durability=SYNC)
        for number, row in enumerate(ROWS[:5], 1):
            await mine.step(row, number)
        here.send(signal.SIGSTOP)
        await mine.send(ROWS[5], 6)
        await theirs.open(owner="the other")
        assert await theirs.step(OTHER, 6) == (truth[5], False)
        here.send(signal.SIGCONT)
        with pytest.raises(Refused) as caught:
            await mine.answer()
        assert caught.value.ending.reason == ("VALUES_DIFFER" if way is One else "TAKEN_OVER")
        assert await theirs.step(ROWS[6], 7) == (truth[6], False)
