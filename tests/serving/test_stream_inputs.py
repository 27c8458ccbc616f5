"""The inputs that a stream begins with: they are stored with it, and do not change."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.calls import RawBlocks, RawCall, pack, raw_channel
from tests.graphs import running_sum, write_model
from tests.servers import address_of, live, park_after, run_server, serve
from tests.timeouts import TIMEOUT_S
from tests.typed_graphs import scaled_sum
from tidegate import blocking
from tidegate.client import Client, InvalidArgument, ValuesDiffer
from tidegate.runtime.server import Server
from tidegate.v1 import tidegate_pb2 as pb

GRAPH = scaled_sum(np.float32, per="stream")
X = [1.0, 2.0]


def scale(value: float) -> dict[str, Any]:
    """The inputs of a stream."""
    return {"scale": [value]}


def named(*values: float) -> list[pb.InputValues]:
    """The same on the wire, for one stream or more."""
    return [pb.InputValues(name="scale", values=pack(*values))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model that multiplies x by an input of the stream, and sums."""
    return write_model(tmp_path / "models", GRAPH)


async def until_parked(server: Server) -> None:
    """Waits until no stream is in memory."""
    park_after(server, 0.01)
    async with asyncio.timeout(TIMEOUT_S):
        while live(server):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)
    park_after(server, 3600)


async def step(client: Client, name: str, inputs: Any = None) -> list[float]:
    """Opens a stream, runs a timestep, and closes it."""
    async with client.open(name, inputs=inputs) as stream:
        return (await stream.step(X))["sum"].tolist()


async def test_a_stream_goes_on_with_what_it_began_with(root: Path) -> None:
    """Given again or left out."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        assert await step(client, "a", scale(3)) == [3, 6]
        assert await step(client, "a") == [6, 12]
        assert await step(client, "a", scale(3)) == [9, 18]


async def test_other_values_are_refused(root: Path) -> None:
    """From the first timestep on, and nothing has changed."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        await step(client, "a", scale(3))
        with pytest.raises(InvalidArgument, match="'scale' has other values than those with which stream 'a' began"):
            await step(client, "a", scale(4))
        assert await step(client, "a") == [6, 12]


async def test_a_stream_does_not_begin_without_them(root: Path) -> None:
    """It is not created either."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        with pytest.raises(InvalidArgument, match=r"stream 'a' begins here, expected 'scale' \(float32 \[1\]\)"):
            await step(client, "a")
        assert [info async for info in client.streams()] == []
        assert live(server) == 0


async def test_a_model_without_them_refuses_them(tmp_path: Path) -> None:
    """By name, before anything is sent, and also from a client that does not check."""
    async with run_server(write_model(tmp_path, running_sum())) as server, Client(address_of(server)) as client:
        with pytest.raises(InvalidArgument, match="inputs: got 'scale', expected none"):
            await step(client, "a", scale(3))
        async with raw_channel(server) as channel:
            call = RawCall(channel)
            await call.send(pb.PredictRequest(open=pb.Open(stream_id="a", inputs=named(3))))
            ending = await call.ending()
            assert (ending.reason, ending.fields) == ("INVALID_FIELD", ("inputs",))


async def test_until_the_first_timestep_the_last_open_counts(root: Path) -> None:
    """Nothing depends on the earlier values yet."""
    async with run_server(root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        await RawCall(channel).open("a", inputs=named(3))
        assert await step(client, "a", scale(5)) == [5, 10]
        assert await step(client, "a") == [10, 20]


async def test_a_take_over_keeps_them(root: Path) -> None:
    """A stream that is live goes to another call with what it began with; other values do not take it over."""
    async with run_server(root) as server, raw_channel(server) as channel, Client(address_of(server)) as client:
        first = RawCall(channel)
        await first.open("a", inputs=named(3))
        assert np.frombuffer((await first.step(*X, step=1)).prediction.outputs[0], "<f4").tolist() == [3, 6]
        with pytest.raises(InvalidArgument, match="other values"):
            await step(client, "a", scale(4))
        assert np.frombuffer((await first.step(*X, step=2)).prediction.outputs[0], "<f4").tolist() == [6, 12]
        assert await step(client, "a") == [9, 18]


async def test_another_server_goes_on_with_them(root: Path, tmp_path: Path) -> None:
    """They are in the store with the state; before the first timestep nothing is, and it needs them again."""
    state = f"sqlite:///{tmp_path / 'state.db'}"
    async with (
        run_server(root, state=state) as left,
        run_server(root, state=state) as right,
        raw_channel(left) as channel,
        Client(address_of(left)) as client,
        Client(address_of(right)) as other,
    ):
        async with client.open("a", inputs=scale(3), sync=True) as stream:
            assert (await stream.step(X))["sum"].tolist() == [3, 6]
        assert await step(other, "a") == [6, 12]
        await RawCall(channel).open("b", inputs=named(3))
        with pytest.raises(InvalidArgument, match="stream 'b' begins here"):
            await step(other, "b")
        assert await step(other, "b", scale(5)) == [5, 10]


async def test_a_stream_that_sleeps_before_its_first_timestep_wakes_with_them(root: Path) -> None:
    """Nothing of it is stored yet."""
    async with run_server(root) as server, raw_channel(server) as channel:
        call = RawCall(channel)
        await call.open("a", inputs=named(3))
        await until_parked(server)
        assert np.frombuffer((await call.step(*X, step=1)).prediction.outputs[0], "<f4").tolist() == [3, 6]


async def test_a_stream_that_sleeps_later_wakes_with_them(root: Path) -> None:
    """They come back with its state, although another stream has its slot; its answers come back with them."""
    async with run_server(root) as server, raw_channel(server) as channel:
        call, other = RawCall(channel), RawCall(channel)
        await call.open("a", inputs=named(3))
        answer = await call.step(*X, step=1)
        await until_parked(server)
        await other.open("b", inputs=named(9))
        await other.step(*X, step=1)
        again = await call.step(*X, step=1)
        assert (again.prediction.duplicate, again.prediction.outputs) == (True, answer.prediction.outputs)
        assert np.frombuffer((await call.step(*X, step=2)).prediction.outputs[0], "<f4").tolist() == [6, 12]


async def test_a_slot_is_used_again_with_other_values(root: Path) -> None:
    """Nothing of the stream before is left in it."""
    async with run_server(root, live_max=1, peer_live_max=1) as server, Client(address_of(server)) as client:
        assert await step(client, "a", scale(3)) == [3, 6]
        await until_parked(server)
        assert await step(client, "b", scale(7)) == [7, 14]


async def test_a_copy_and_an_imported_stream_have_them(root: Path) -> None:
    """They are part of the state."""
    async with run_server(root, answers_remembered=1) as server, Client(address_of(server)) as client:
        once = await step(client, "a", scale(0.1))  # each byte of it is in use
        await client.fork_stream("a", "b")
        await client.import_stream(await client.export_stream("a"), "c")
        assert await step(client, "b") == [2 * once[0], 2 * once[1]]
        assert await step(client, "c") == [2 * once[0], 2 * once[1]]


async def test_a_unary_call_gives_them_with_the_first_timestep(root: Path) -> None:
    """Later ones may leave them out; other values are refused, also while the stream is in memory."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        with pytest.raises(InvalidArgument, match="stream 'a' begins here"):
            await client.predict_one("a", X, step=1)
        assert (await client.predict_one("a", X, step=1, inputs=scale(3)))["sum"].tolist() == [3, 6]
        with pytest.raises(InvalidArgument, match="other values"):
            await client.predict_one("a", X, step=2, inputs=scale(4))
        assert (await client.predict_one("a", X, step=2))["sum"].tolist() == [6, 12]


async def test_a_refused_first_timestep_leaves_them_open(root: Path) -> None:
    """The stream is in memory then, at step 0, and the next request begins it with other values."""
    async with run_server(root) as server, Client(address_of(server)) as client:
        with pytest.raises(InvalidArgument, match="is inf"):
            await client.predict_one("a", [np.inf, 1.0], step=1, inputs=scale(3))
        assert (await client.predict_one("a", X, step=1, inputs=scale(4)))["sum"].tolist() == [4, 8]


async def test_a_number_that_is_not_finite_is_refused(root: Path) -> None:
    """NaN has no meaning in what never changes."""
    async with run_server(root) as server, raw_channel(server) as channel:
        for value in (np.nan, np.inf):
            call = RawCall(channel)
            await call.send(pb.PredictRequest(open=pb.Open(stream_id="a", inputs=named(value))))
            assert "'scale' has a number that is not finite" in (await call.ending()).message


async def test_streams_are_opened_with_a_column(root: Path) -> None:
    """A stream that cannot be opened like this is refused in its row."""
    async with run_server(root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        opened = await call.open("a", "b", inputs=named(3, 4))
        answer = await call.block(opened.handles, [X, X])
        assert np.frombuffer(answer.outputs[0], "<f4").tolist() == [3, 6, 4, 8]
        again = await call.open("a", "c", inputs=named(9, 5))
        assert [(row.row, row.error.field) for row in again.errors] == [(0, "inputs")]
        unknown = await call.open("d", inputs=[pb.InputValues(name="other", values=b"")])
        assert "got 'other', expected 'scale'" in unknown.errors[0].error.message


async def test_a_column_that_does_not_fit_the_streams_ends_the_call(root: Path) -> None:
    """As with any other column."""
    async with run_server(root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        few = [pb.InputValues(name="scale", values=b"12345")]
        await call.send(pb.PredictBlocksRequest(open=pb.OpenStreams(stream_ids=["a", "b"], inputs=few)))
        ending = await call.ending()
        assert "'scale' has 5 bytes, expected as many for each of 2 streams" in ending.message


def test_they_survive_the_death_of_the_server(root: Path, tmp_path: Path) -> None:
    """Killed without warning, the server continues from its store; a repeat is still told from another timestep."""
    state = f"sqlite://{tmp_path / 'state.db'}"
    with serve(root, "--state", state) as server, blocking.Client(server.address) as client:
        with client.open("a", inputs=scale(3), sync=True) as stream:
            assert stream.step(X)["sum"].tolist() == [3, 6]
        server.signal(signal.SIGKILL)
        server.wait()
    with serve(root, "--state", state) as server, blocking.Client(server.address) as client:
        with client.open("a", sync=True) as stream:
            assert stream.step(X, step=1)["sum"].tolist() == [3, 6]
            assert stream.step(X)["sum"].tolist() == [6, 12]
        with client.open("a") as stream, pytest.raises((ValuesDiffer, InvalidArgument)):
            stream.step([5.0, 5.0], step=1)
        with pytest.raises(InvalidArgument, match="other values"), client.open("a", inputs=scale(4)):
            pass
