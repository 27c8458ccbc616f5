"""Questions that are answered once: models, and the streams of a server; with either client."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.scripted import Scripted, scripted
from tests.scripted_calls import MODEL
from tidegate import blocking
from tidegate.client import (
    Client,
    ClientError,
    InvalidArgument,
    ModelMismatch,
    ServerUnavailable,
    StreamExists,
    StreamInfo,
    StreamNotFound,
    StreamRefused,
)
from tidegate.v1 import tidegate_pb2 as pb

STREAM = pb.Stream(
    stream_id="a",
    state=pb.Stream.STATE_PARKED,
    model="toy",
    version="1",
    fingerprint="f" * 64,
    step=9,
    durable_step=8,
    epoch=3,
    create_time=Timestamp(seconds=1_700_000_000, nanos=1),
    update_time=Timestamp(seconds=1_700_000_000, nanos=2),
    state_bytes=77,
)
INFO = StreamInfo(
    "a", "parked", "toy", "1", "f" * 64, 9, 8, 3, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002, 77
)

Ask = Callable[..., Any]


async def ask_async(server: Scripted, method: str, *arguments: Any, **more: Any) -> Any:
    """Asks with the asynchronous client; gives a list of what is iterated over."""
    async with Client(server.address) as client:
        answer = getattr(client, method)(*arguments, **more)
        return [item async for item in answer] if hasattr(answer, "__aiter__") else await answer


async def ask_blocking(server: Scripted, method: str, *arguments: Any, **more: Any) -> Any:
    """The same with the blocking client."""

    def ask() -> Any:
        with blocking.Client(server.address) as client:
            answer = getattr(client, method)(*arguments, **more)
            return list(answer) if hasattr(answer, "__next__") else answer

    return await asyncio.to_thread(ask)


@pytest.fixture(params=[ask_async, ask_blocking], ids=["async", "blocking"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """One of the clients."""
    return request.param


async def test_streams_come_page_by_page(ask: Ask) -> None:
    """In the order of the server, until it has no more pages."""
    asked = []

    def page(request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:
        asked.append((request.prefix, request.state, request.page_size, request.page_token))
        names, token = {"": (["a", "b"], "more"), "more": ([], "on"), "on": (["c"], "")}[request.page_token]
        return pb.ListStreamsResponse(streams=[pb.Stream(stream_id=name) for name in names], next_page_token=token)

    async with scripted() as server:
        server.replies["ListStreamsRequest"] = page
        found = await ask(server, "streams", "pump-", "parked", page_size=2)
    assert [info.stream_id for info in found] == ["a", "b", "c"]
    assert asked == [("pump-", pb.Stream.STATE_PARKED, 2, token) for token in ("", "more", "on")]


async def test_a_server_that_cannot_select_by_model_is_no_trouble(ask: Ask) -> None:
    """It is asked for the model; what it lists beside that is left out."""
    asked = []

    def page(request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:
        asked.append((request.model, request.version))
        listed = [("a", "toy", "1"), ("b", "toy", "2"), ("c", "lake", "2")]
        return pb.ListStreamsResponse(
            streams=[pb.Stream(stream_id=name, model=model, version=version) for name, model, version in listed]
        )

    async with scripted() as server:
        server.replies["ListStreamsRequest"] = page
        found = await ask(server, "streams", model="toy", version="2")
    assert [info.stream_id for info in found] == ["b"]
    assert asked == [("toy", "2")]


async def test_a_state_that_there_is_not_is_refused_here(ask: Ask) -> None:
    """With those that there are."""
    async with scripted() as server:
        with pytest.raises(InvalidArgument, match="state: got 'asleep', expected one of live, parked, expired"):
            await ask(server, "streams", "", "asleep")


async def test_a_stream_is_described(ask: Ask) -> None:
    """With all fields of the answer."""
    async with scripted() as server:
        server.replies["DescribeStreamRequest"] = lambda request: pb.DescribeStreamResponse(
            stream=STREAM if request.stream_id == "a" else None
        )
        assert await ask(server, "describe_stream", "a") == INFO


async def test_a_stream_is_deleted(ask: Ask) -> None:
    """It is returned as it was."""
    async with scripted() as server:
        server.replies["DeleteStreamRequest"] = lambda request: pb.DeleteStreamResponse(
            stream=STREAM if request.stream_id == "a" else None
        )
        assert await ask(server, "delete_stream", "a") == INFO


async def test_a_state_is_exported_and_imported_unchanged(ask: Ask) -> None:
    """It is opaque."""
    state = bytes(range(256))
    imported = []

    def take(request: pb.ImportStreamRequest) -> pb.ImportStreamResponse:
        imported.append((request.checkpoint, request.stream_id))
        return pb.ImportStreamResponse(stream=STREAM)

    async with scripted() as server:
        server.replies["ExportStreamRequest"] = lambda _: pb.ExportStreamResponse(checkpoint=state)
        server.replies["ImportStreamRequest"] = take
        assert await ask(server, "export_stream", "a") == state
        assert await ask(server, "import_stream", state) == INFO
        assert await ask(server, "import_stream", state, "b") == INFO
    assert imported == [(state, ""), (state, "b")]


async def test_a_stream_is_forked(ask: Ask) -> None:
    """From its source, under the new id or one that the server issues."""
    forked = []

    def fork(request: pb.ForkStreamRequest) -> pb.ForkStreamResponse:
        forked.append((request.stream_id, request.new_stream_id))
        return pb.ForkStreamResponse(stream=STREAM)

    async with scripted() as server:
        server.replies["ForkStreamRequest"] = fork
        assert await ask(server, "fork_stream", "a") == INFO
        assert await ask(server, "fork_stream", "a", "b") == INFO
    assert forked == [("a", ""), ("a", "b")]


@pytest.mark.parametrize(
    ("reason", "code", "error"),
    [
        ("STREAM_NOT_FOUND", "NOT_FOUND", StreamNotFound),
        ("STREAM_EXISTS", "ALREADY_EXISTS", StreamExists),
        ("MODEL_MISMATCH", "FAILED_PRECONDITION", ModelMismatch),
        ("INVALID_FIELD", "INVALID_ARGUMENT", InvalidArgument),
        ("", "UNIMPLEMENTED", StreamRefused),
        ("", "UNAVAILABLE", ServerUnavailable),
    ],
)
async def test_a_refusal_has_a_name(ask: Ask, reason: str, code: str, error: type[ClientError]) -> None:
    """The reason of the server, or the code of gRPC where there is none."""
    async with scripted() as server:
        server.replies["ForkStreamRequest"] = lambda _: (reason, code)
        with pytest.raises(error) as caught:
            await ask(server, "fork_stream", "a")
        assert caught.value.reason == (reason or code)


async def test_models_are_listed_and_described(ask: Ask) -> None:
    """With what a client needs to feed one."""
    async with scripted() as server:
        server.replies["ListModelsRequest"] = lambda _: pb.ListModelsResponse(models=[MODEL])
        server.replies["DescribeModelRequest"] = lambda request: pb.DescribeModelResponse(
            model=MODEL, card_json=f"{request.name}/{request.version}"
        )
        (model,) = await ask(server, "models")
        assert (model.name, model.version, model.features[0].name, model.batch_invariant) == ("toy", "1", "x", True)
        assert await ask(server, "describe", "toy", "1") == (model, "toy/1")
