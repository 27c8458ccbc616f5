"""The clients that docs/protocol.md shows, against a server that plays what seldom happens: they keep the rules of that page."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.calls import pack
from tests.clients.programs import CLIENTS, LANGUAGES, Client, command, node
from tests.forked_programs import forked
from tests.scripted import Scripted, closing, scripted
from tests.scripted_calls import Call
from tidegate.v1 import tidegate_pb2 as pb

__all__ = ["node"]

pytestmark = pytest.mark.parametrize("language", LANGUAGES)
streams = pytest.mark.parametrize("level", ["simple", "full"])
full = pytest.mark.parametrize("level", ["full"])
one = pytest.mark.parametrize("level", ["one"])

# A number that no version of this package has for a reason or an action.
NEW = 99
# How long an open may take in the tests that wait for it, in seconds; by the clients' own clock it is ten.
SHORT_S = 0.5

Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def start(request: pytest.FixtureRequest, language: str, level: str) -> AsyncIterator[Start]:
    """Starts a client of the stream "s", with other arguments before and after its own."""
    program = command(request, language, level)
    started: list[Client] = []

    async def start_one(server: Any, *more: str, run: list[str] = program) -> Client:
        started.append(await Client.start(run, server.address, "s", *more))
        return started[-1]

    yield start_one
    for client in started:
        await client.kill()


def sums(*values: float) -> list[tuple[int, bytes]]:
    """The predictions of a server that adds up, from timestep 1 on."""
    return [(step, pack(sum(values[:step]))) for step in range(1, len(values) + 1)]


async def lost(client: Client) -> str:
    """Waits until a client has given its stream up, which takes exit status 1 and one line; the line's first word."""
    status, stderr = await client.end()
    assert (status, stderr.count("\n")) == (1, 1), stderr
    return stderr.split(":")[0]


# Breaks ------------------------------------------------------------------------------------------------------------------


@streams
@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "OK"])
async def test_a_disconnect_is_not_seen(start: Start, code: str) -> None:
    """The unanswered timestep is sent again on another call, with the right `resume_from`."""

    async def breaking(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 0
        await call.serve(1, durable=1)
        await call.expect(2)
        if code != "OK":
            await call.end(code=code)

    async def again(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 2
        await call.expect(2)
        await call.answer(2, durable=2)
        await closing(call)

    async with scripted(breaking, again) as server:
        client = await start(server)
        await client.send([1.0], [2.0])
        await client.has(2)
        await client.close()
        assert client.answers == sums(1, 2)


@pytest.mark.parametrize("level", ["one", "simple", "full"])
@pytest.mark.parametrize(
    ("code", "message"),
    [("INVALID_ARGUMENT", "no"), ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)")],
)
async def test_a_final_status_is_reported(start: Start, level: str, code: str, message: str) -> None:
    """A proxy, or gRPC itself, has refused the call for good."""

    async def script(call: Call) -> None:
        await call.read_open()
        await call.end(code=code, message=message)

    async with scripted(*[script] * (level != "one")) as server:
        server.replies["PredictOneRequest"] = lambda _: ("", code, {"message": message})
        client = await start(server)
        await client.send([1.0])
        assert await lost(client) == code


@streams
async def test_an_open_that_is_not_answered_is_left(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, language: str, level: str
) -> None:
    """A server that froze while it opened the stream delays the client no longer than the deadline of an open."""

    async def frozen(call: Call) -> None:
        await call.read_open()
        await call.gone()

    async def again(call: Call) -> None:
        await call.open()
        await call.serve(1, durable=1)
        await closing(call)

    async with scripted(frozen, again) as server:
        client = await start(server, run=hastened(request, tmp_path, language, level))
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == sums(1)


def hastened(request: pytest.FixtureRequest, folder: Path, language: str, level: str) -> list[str]:
    """How a client is started whose opens take a moment at most."""
    program, *rest = command(request, language, level, fork=False)
    if language == "node":
        hasten = folder / "hasten.js"
        hasten.write_text(f"require('{CLIENTS}/node/common').CALL_MS = {SHORT_S * 1000};")
        return [program, "-r", str(hasten), *rest]
    hasten = folder / "hasten.py"
    hasten.write_text(
        f"import runpy, sys; sys.path.insert(0, '{CLIENTS}/python'); import common; common.CALL_S = {SHORT_S}\n"
        "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return forked(str(hasten), *rest)


@full
async def test_a_move_is_followed_when_all_is_read(start: Start) -> None:
    """The client sends nothing more and half-closes; what is answered until the end of the call is not asked for again."""

    async def moving(call: Call) -> None:
        await call.open(answers_remembered=3)
        await call.expect(1, 2, 3)
        await call.move()
        await call.answer(1, 2)
        assert await call.read() is None
        await call.answer(3, durable=3)
        await call.end("STOPPING")

    async def again(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 4
        await call.serve(4, durable=4)
        await closing(call)

    async with scripted(moving, again) as server:
        client = await start(server)
        await client.send([1.0], [2.0], [3.0], [4.0])
        await client.has(4)
        await client.close()
        assert client.answers == sums(1, 2, 3, 4)


# Replays -----------------------------------------------------------------------------------------------------------------


@full
async def test_what_the_server_has_lost_is_sent_again_and_delivered_once(start: Start) -> None:
    """What is stored is kept no longer; what is not stored is sent again, in the same order, before what is new."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1, 2, 3, 4)
        await call.durable(2)
        await call.expect_unapplied(5)
        call.server.crash(2)
        await call.end(code="UNAVAILABLE")

    async def again(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 3
        await call.serve(3, 4)
        await call.serve(5, durable=5)
        await closing(call)

    async with scripted(first, again) as server:
        client = await start(server)
        await client.send([1.0], [2.0], [3.0], [4.0])
        await client.has(4)
        await client.send([5.0])
        await client.has(5)
        await client.close()
        assert client.answers == sums(1, 2, 3, 4, 5)


@full
async def test_a_replay_with_another_answer_is_reported(start: Start) -> None:
    """The user has acted on what the stream does not go on from."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.expect_unapplied(2)
        call.server.crash(0)
        await call.end(code="UNAVAILABLE")

    async def again(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1, outputs=[pack(99.0)])
        await call.gone()

    async with scripted(first, again) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.send([2.0])
        assert await lost(client) == "DIVERGED"


@full
async def test_a_replay_is_not_compared_with_an_answer_that_was_lost(start: Start) -> None:
    """A timestep with a lost answer is reported. When it is applied again later, there is no delivered answer to compare."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect(1)
        await call.answer(1, outputs=[])
        await call.expect_unapplied(2)
        call.server.crash(0)
        await call.end(code="UNAVAILABLE")

    async def again(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.serve(2, durable=2)
        await closing(call)

    async with scripted(first, again) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.send([2.0])
        await client.has(2)
        await client.close()
        assert (client.refused, client.answers) == (["ANSWER_LOST"], sums(1, 2)[1:])


@full
async def test_a_close_that_has_not_stored_all_is_made_again(start: Start) -> None:
    """On another call, when all that is kept has been sent again."""

    async def first(call: Call) -> None:
        await call.open()
        await call.serve(1)
        call.server.crash(0)
        await call.close(durable=0)

    async def again(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 1
        await call.serve(1)
        await closing(call)

    async with scripted(first, again) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == sums(1)


# Refusals ----------------------------------------------------------------------------------------------------------------


@streams
async def test_a_timestep_is_sent_again_on_the_action_of_the_server(start: Start) -> None:
    """After the time that it asks for; a reason that the client does not know changes nothing."""
    waited = []

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        refused = time.monotonic()
        await call.refuse(
            1, reason=pb.Error(reason=NEW, action=pb.Error.ACTION_RETRY, retry_after={"nanos": 300_000_000})
        )
        await call.serve(1, durable=1)
        waited.append(time.monotonic() - refused)
        await closing(call)

    async with scripted(script) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == sums(1)
        assert waited[0] >= 0.3


@streams
async def test_a_stream_is_opened_again_on_the_action_of_the_server(start: Start) -> None:
    """In place of an answer: the timestep is sent again on the next call."""

    async def first(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason=pb.Error(reason=NEW, action=pb.Error.ACTION_REOPEN))
        await call.gone()

    async def again(call: Call) -> None:
        await call.open()
        assert call.ask.resume_from == 1
        await call.serve(1, durable=1)
        await closing(call)

    async with scripted(first, again) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == sums(1)


@streams
@pytest.mark.parametrize("action", [pb.Error.ACTION_STREAM_LOST, pb.Error.ACTION_UNSPECIFIED, NEW])
async def test_an_action_that_is_not_known_ends_the_stream(start: Start, action: Any) -> None:
    """To go on could do harm that only a newer client knows."""

    async def script(call: Call) -> None:
        await call.open()
        await call.expect_unapplied(1)
        await call.refuse(1, reason=pb.Error(reason=pb.Error.REASON_VALUES_DIFFER, action=action, message="no"))
        await call.gone()

    async with scripted(script) as server:
        client = await start(server)
        await client.send([1.0])
        assert await lost(client) == "VALUES_DIFFER"


@full
async def test_a_refused_timestep_that_had_been_applied_keeps_its_number(start: Start) -> None:
    """Its answer is lost, and those behind it do not move up."""

    async def script(call: Call) -> None:
        await call.open(answers_remembered=2)
        await call.expect(1)
        await call.expect_unapplied(2)
        await call.refuse(1, reason="MODEL_FAILED", next_step=2)
        await call.refuse(2, reason="STEP_GAP")
        await call.serve(2, durable=2)
        await closing(call)

    async with scripted(script) as server:
        client = await start(server)
        await client.send([1.0], [2.0])
        await client.has(2)
        await client.close()
        assert (client.refused, client.answers) == (["ANSWER_LOST"], sums(1, 2)[1:])


@streams
async def test_a_timestep_that_is_too_large_is_not_sent(start: Start) -> None:
    """It would end the call each time that it is sent."""

    async def script(call: Call) -> None:
        await call.open(message_bytes_max=1000)
        await call.serve(1)
        await call.serve(2, durable=2)
        await closing(call)

    async with scripted(script) as server:
        client = await start(server)
        await client.send([1.0], [0.0] * 300, [2.0])
        await client.has(3)
        await client.close()
        assert (client.refused, client.answers) == (["TOO_LARGE"], sums(1, 2))


@streams
async def test_unknown_messages_of_a_newer_server_are_ignored(start: Start) -> None:
    """A kind of response that the client does not know answers nothing."""
    newer = pb.PredictResponse.FromString(b"\xfa\x07\x00")  # field 127, of length 0

    async def script(call: Call) -> None:
        await call.context.write(newer)
        await call.open()
        await call.expect(1)
        await call.context.write(newer)
        await call.answer(1, durable=1)
        await closing(call)

    async with scripted(script) as server:
        client = await start(server)
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == sums(1)


# One call a timestep -----------------------------------------------------------------------------------------------------


class Single(Scripted):
    """A server of single calls: it refuses each number once, as one that is busy, and then answers it."""

    def __init__(self, scripts: Any) -> None:
        super().__init__(scripts)
        self.asked: list[tuple[int, float]] = []

    async def PredictOne(self, request: pb.PredictOneRequest, context: Any) -> pb.PredictOneResponse:  # noqa: N802
        """Answers a timestep the second time."""
        self.asked.append((request.step, time.monotonic()))
        if [step for step, _ in self.asked].count(request.step) == 1:
            info = error_details_pb2.ErrorInfo(reason="BUSY", domain="tidegate.v1", metadata={"action": "RETRY"})
            after = error_details_pb2.RetryInfo(retry_delay={"nanos": 300_000_000})
            details = [any_pb2.Any(), any_pb2.Any()]
            details[0].Pack(info)
            details[1].Pack(after)
            status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="busy", details=details)
            await context.abort_with_status(rpc_status.to_status(status))
        return pb.PredictOneResponse(prediction=pb.Prediction(step=request.step, outputs=[request.values]))


@one
async def test_a_single_call_is_made_again_on_the_action_of_the_server(start: Start) -> None:
    """After the time that it asks for, under the same number; the first number is the one that was given."""
    async with scripted(make=Single) as server:
        client = await start(server, "--step", "7")
        await client.send([1.0])
        await client.has(1)
        await client.close()
        assert client.answers == [(7, pack(1.0))]
        (first, refused), (second, answered) = server.asked
        assert (first, second) == (7, 7)
        assert answered - refused >= 0.3
