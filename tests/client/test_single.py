"""One timestep in one question: asked again by its number, unpacked by the description of the model that ran it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.calls import pack
from tests.scripted import Scripted, Time, scripted
from tests.scripted_calls import MODEL
from tidegate import blocking
from tidegate.client import (
    AnswerLost,
    Client,
    ClientError,
    InvalidTimestep,
    ModelFailed,
    Overloaded,
    ServerUnavailable,
    StepGap,
    StreamNotFound,
    TakenOver,
    TimestepRefused,
    ValuesDiffer,
)
from tidegate.v1 import tidegate_pb2 as pb

Ask = Callable[..., Any]

OTHER = pb.Model(
    name="toy",
    version="2",
    fingerprint="e" * 64,
    features=[pb.Feature(name="y"), pb.Feature(name="x")],
    outputs=[pb.Output(name="both", data_type=pb.DATA_TYPE_FLOAT32, shape=[2])],
)


async def ask_async(server: Scripted, *arguments: Any, time: Time, settings: dict[str, Any], **more: Any) -> Any:
    """Asks with the asynchronous client."""
    async with Client(server.address, backoff=time.backoff, **settings) as client:
        return await client.predict_one(*arguments, **more)


async def ask_blocking(server: Scripted, *arguments: Any, time: Time, settings: dict[str, Any], **more: Any) -> Any:
    """The same with the blocking client."""

    def ask() -> Any:
        with blocking.Client(server.address, backoff=time.backoff, **settings) as client:
            return client.predict_one(*arguments, **more)

    return await asyncio.to_thread(ask)


@pytest.fixture(params=[ask_async, ask_blocking], ids=["async", "blocking"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """One of the clients."""

    async def asked(server: Scripted, *arguments: Any, time: Time | None = None, **more: Any) -> Any:
        settings = {name: more.pop(name) for name in ("reconnect_s", "timeout_s") if name in more}
        return await request.param(server, *arguments, time=time or Time(), settings=settings, **more)

    return asked


def answering(server: Scripted, *replies: Any) -> list[pb.PredictOneRequest]:
    """Has a server give these replies, one a request; gives the requests that come."""
    asked: list[pb.PredictOneRequest] = []
    left: Iterator[Any] = iter(replies)

    def reply(request: pb.PredictOneRequest) -> Any:
        asked.append(request)
        return next(left)

    def describe(request: pb.DescribeModelRequest) -> Any:
        return pb.DescribeModelResponse(model={"1": MODEL, "2": OTHER, "": OTHER}[request.version])

    server.replies["PredictOneRequest"] = reply
    server.replies["DescribeModelRequest"] = describe
    server.replies["DescribeStreamRequest"] = lambda _: ("STREAM_NOT_FOUND", "NOT_FOUND")
    return asked


def answer(step: int, *values: float, version: str = "1", **more: Any) -> pb.PredictOneResponse:
    """An answer."""
    prediction = pb.Prediction(step=step, outputs=[pack(*values)], durable_step=step, **more)
    return pb.PredictOneResponse(prediction=prediction, model="toy", version=version)


async def test_a_timestep_is_sent_and_answered(ask: Ask) -> None:
    """Durable unless the caller wants otherwise, under the model that was named."""
    async with scripted() as server:
        asked = answering(server, answer(7, 2.5), answer(8, 3.5, duplicate=True))
        got = await ask(server, "a", [1.5], step=7)
        assert (got.step, got["sum"].item(), got.durable_step, got.duplicate) == (7, 2.5, 7, False)
        got = await ask(server, "a", [2.5], step=8, model="toy", version="1", sync=False)
        assert (got.step, got["sum"].item(), got.duplicate) == (8, 3.5, True)
    assert asked == [
        pb.PredictOneRequest(stream_id="a", step=7, values=pack(1.5), durability=pb.DURABILITY_SYNC),
        pb.PredictOneRequest(
            stream_id="a", step=8, values=pack(2.5), model="toy", version="1", durability=pb.DURABILITY_ASYNC
        ),
    ]


async def test_an_answer_is_read_as_the_model_that_ran_has_written_it() -> None:
    """Each version has its own description, which is asked for once."""
    async with scripted() as server, Client(server.address) as client:
        answering(
            server, answer(1, 1.0), answer(1, 2.0, 3.0, version="2"), answer(2, 4.0), answer(2, 5.0, 6.0, version="2")
        )
        asked = []
        describe = server.replies["DescribeModelRequest"]
        server.replies["DescribeModelRequest"] = lambda request: asked.append(request.version) or describe(request)
        for step in (1, 2):
            assert (await client.predict_one("old", [0.0], step=step))["sum"].shape == (1,)
            assert (await client.predict_one("new", [0.0, 0.0], step=step))["both"].shape == (2,)
        assert asked == ["1", "2"]


async def test_values_may_be_named(ask: Ask) -> None:
    """In the order of the model that the stream runs under, or will."""
    async with scripted() as server:
        asked = answering(server, answer(1, 1.0, 2.0, version="2"), answer(9, 1.0))
        await ask(server, "new", {"x": 1.0, "y": 2.0}, step=1)
        stream = pb.Stream(stream_id="old", model="toy", version="1")
        server.replies["DescribeStreamRequest"] = lambda _: pb.DescribeStreamResponse(stream=stream)
        await ask(server, "old", {"x": 3.0}, step=9)
        with pytest.raises(InvalidTimestep, match="no feature is called y; the model has x"):
            await ask(server, "old", {"y": 3.0}, step=10)
    assert [request.values for request in asked] == [pack(2.0, 1.0), pack(3.0)]


@pytest.mark.parametrize(
    ("reason", "code"),
    [("", "UNAVAILABLE"), ("", "INTERNAL"), ("STOPPING", "UNAVAILABLE"), ("OVERLOADED", "RESOURCE_EXHAUSTED")],
)
async def test_a_timestep_with_a_number_is_sent_again(ask: Ask, reason: str, code: str) -> None:
    """After a disconnect, or when the action is RETRY; the same bytes each time."""
    time = Time()
    async with scripted() as server:
        asked = answering(server, (reason, code), (reason, code), answer(3, 1.0))
        assert (await ask(server, "a", [1.0], step=3, time=time))["sum"].item() == 1.0
    assert asked == [asked[0]] * 3
    assert time.slept == [0.0, 0.05]


@pytest.mark.parametrize("step", [None, 0])
async def test_a_timestep_without_a_number_is_sent_once(ask: Ask, step: int | None) -> None:
    """Asked again it would be applied again."""
    async with scripted() as server:
        asked = answering(server, ("", "UNAVAILABLE"))
        with pytest.raises(ServerUnavailable, match="UNAVAILABLE it is"):
            await ask(server, "a", [1.0], step=step)
    assert [request.step for request in asked] == [0]


@pytest.mark.parametrize(
    ("reason", "code", "error"),
    [("", "UNAVAILABLE", ServerUnavailable), ("OVERLOADED", "RESOURCE_EXHAUSTED", Overloaded)],
)
async def test_asking_again_has_an_end(ask: Ask, reason: str, code: str, error: type[ClientError]) -> None:
    """After `reconnect_s`; the error has this time and the last reason."""
    async with scripted() as server:
        answering(server, *[(reason, code)] * 9)
        with pytest.raises(error, match=r"it is; tried for 0\.1 s"):
            await ask(server, "a", [1.0], step=1, reconnect_s=0.1)


@pytest.mark.parametrize(
    ("reason", "code", "error"),
    [
        ("WRONG_WIDTH", "INVALID_ARGUMENT", InvalidTimestep),
        ("MODEL_FAILED", "INTERNAL", ModelFailed),
        ("STEP_GAP", "OUT_OF_RANGE", StepGap),
        ("VALUES_DIFFER", "ALREADY_EXISTS", ValuesDiffer),
        ("TAKEN_OVER", "ABORTED", TakenOver),
        ("STREAM_NOT_FOUND", "NOT_FOUND", StreamNotFound),
    ],
)
async def test_a_refusal_has_a_name_and_is_final(ask: Ask, reason: str, code: str, error: type[ClientError]) -> None:
    """Asked again it would be refused again."""
    async with scripted() as server:
        asked = answering(server, (reason, code))
        with pytest.raises(error, match=f"^{reason} it is$") as caught:
            await ask(server, "a", [1.0], step=4)
        assert (type(caught.value), caught.value.reason) == (error, reason)
    assert len(asked) == 1


async def test_an_unknown_refusal_of_a_timestep_is_one() -> None:
    """Its action refuses the timestep only."""
    async with scripted() as server, Client(server.address) as client:
        answering(server)
        server.replies["PredictOneRequest"] = lambda _: ("UNHEARD_OF", "INVALID_ARGUMENT", {"action": "DROP"})
        with pytest.raises(TimestepRefused) as caught:
            await client.predict_one("a", [1.0], step=1)
        assert type(caught.value) is TimestepRefused


async def test_a_forgotten_answer_is_reported(ask: Ask) -> None:
    """The timestep counts; only its prediction is gone."""
    async with scripted() as server:
        gone = pb.Prediction(step=3, durable_step=90, duplicate=True)
        answering(server, pb.PredictOneResponse(prediction=gone, model="toy", version="1"))
        with pytest.raises(AnswerLost, match="timestep 3 was applied, but the server no longer remembers"):
            await ask(server, "a", [1.0], step=3)


async def test_an_answer_that_cannot_be_read_is_reported() -> None:
    """The model went away before it could be described: the timestep is applied, and can be asked for again."""
    async with scripted() as server, Client(server.address) as client:
        answering(server, answer(3, 1.0), answer(3, 1.0))
        describe = server.replies["DescribeModelRequest"]
        server.replies["DescribeModelRequest"] = lambda _: ("MODEL_NOT_FOUND", "NOT_FOUND")
        with pytest.raises(AnswerLost, match=r"timestep 3 was applied, .* MODEL_NOT_FOUND it is; ask again"):
            await client.predict_one("a", [1.0], step=3)
        server.replies["DescribeModelRequest"] = describe
        assert (await client.predict_one("a", [1.0], step=3))["sum"].item() == 1.0
