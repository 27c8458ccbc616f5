"""How a client gets to its server: with TLS, with metadata, over a channel that the caller made, and by an address."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.scripted import Scripted, closing, sums
from tests.scripted_calls import MODEL, Call
from tests.servers import address_of, run_server
from tests.timeouts import TIMEOUT_S
from tests.tls import Certificates, make_certificates, tls_before
from tidegate import blocking
from tidegate.client import Client, InvalidArgument, ServerUnavailable, WrongOrder
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

SECRET = "Bearer very-secret"


class Recorder(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Notes what comes with each call."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Hands the call on."""
        tokens = [value for key, value in details.invocation_metadata if key == "authorization"]
        self.seen.append((details.method.rpartition("/")[2], tokens))
        return await continuation(details)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and what it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def recording(
    *scripts: Any, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[tuple[str, Scripted, Recorder]]:
    """A server of gRPC that plays these scripts and notes what comes with its calls."""
    recorder = Recorder()
    servicer = Scripted(scripts)
    server = grpc.aio.server(interceptors=[recorder], options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield f"localhost:{port}", servicer, recorder
    finally:
        await server.stop(None)
        for error in servicer.failed:
            raise error


async def one_stream(call: Call) -> None:
    """A stream of two timesteps."""
    await call.open()
    await call.serve(1, 2)
    await closing(call)


def answer_models(servicer: Scripted) -> None:
    """Has the server answer the question which models there are."""
    servicer.replies["ListModelsRequest"] = lambda _: pb.ListModelsResponse(models=[MODEL])


# TLS -----------------------------------------------------------------------------------------------------------------


async def test_streams_and_questions_go_over_tls(certificates: Certificates, sum_root: Path) -> None:
    """To a real server, behind a door with TLS."""
    async with (
        run_server(sum_root) as server,
        tls_before(address_of(server), certificates.context()) as address,
        Client(address, credentials=certificates.credentials()) as client,
    ):
        assert [model.name for model in await client.models()] == ["toy"]
        async with client.open("a") as stream, client.block(["b", "c"]) as block:
            assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
            assert (await block.step([[3.0], [4.0]]))["sum"].ravel().tolist() == [3.0, 4.0]


async def test_a_blocking_client_uses_tls_and_a_token(certificates: Certificates) -> None:
    """To gRPC's own TLS, with metadata on each call."""
    pair = (certificates.server_key.read_bytes(), certificates.server_cert.read_bytes())
    async with recording(one_stream, credentials=grpc.ssl_server_credentials([pair])) as (address, servicer, recorder):
        answer_models(servicer)

        def work() -> None:
            trusted = certificates.credentials()
            with blocking.Client(address, credentials=trusted, metadata=[("authorization", SECRET)]) as client:
                client.models()
                with client.open("a") as stream:
                    assert [answer["sum"].item() for answer in stream.predict([[1.0], [2.0]])] == [1.0, 3.0]

        await asyncio.to_thread(work)
        assert recorder.seen == [("ListModels", [SECRET]), ("PredictBlocks", [SECRET])]


async def test_a_client_shows_its_certificate(certificates: Certificates, sum_root: Path) -> None:
    """Where the server asks for one, and only who has one is let in."""
    async with (
        run_server(sum_root) as server,
        tls_before(address_of(server), certificates.context(both=True)) as address,
    ):
        async with Client(address, credentials=certificates.credentials(client=True)) as client:
            assert len(await client.models()) == 1
        async with Client(address, credentials=certificates.credentials()) as client:
            with pytest.raises(ServerUnavailable):
                await client.models()


@pytest.mark.parametrize("credentials", [None, grpc.ssl_channel_credentials()], ids=["none", "others"])
async def test_a_server_that_is_not_trusted_is_not_talked_to(
    certificates: Certificates, sum_root: Path, credentials: grpc.ChannelCredentials | None
) -> None:
    """Nor is TLS left out where it is asked for."""
    async with (
        run_server(sum_root) as server,
        tls_before(address_of(server), certificates.context()) as address,
        Client(address, credentials=credentials, timeout_s=5.0) as client,
    ):
        with pytest.raises(ServerUnavailable):
            await client.models()


# Metadata ------------------------------------------------------------------------------------------------------------


async def test_metadata_is_sent_with_every_call() -> None:
    """Once, when it begins: with questions, streams, and streams that are opened again."""

    async def broken(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.end(code="UNAVAILABLE")

    async def again(call: Call) -> None:
        await call.open()
        await call.serve(2)
        await closing(call)

    async with recording(broken, again) as (address, servicer, recorder):
        answer_models(servicer)
        async with Client(address, metadata=[("authorization", SECRET), ("tenant", "a")]) as client:
            await client.models()
            async with client.open("a") as stream:
                assert await sums(stream, [1.0]) == [1.0]
                assert await sums(stream, [2.0]) == [3.0]
        assert recorder.seen == [("ListModels", [SECRET]), ("PredictBlocks", [SECRET]), ("PredictBlocks", [SECRET])]


async def test_without_metadata_nothing_is_printed() -> None:
    """An empty list is as none."""
    async with recording() as (address, servicer, recorder):
        answer_models(servicer)
        for metadata in (None, []):
            async with Client(address, metadata=metadata) as client:
                await client.models()
        assert recorder.seen == [("ListModels", [])] * 2


@pytest.mark.parametrize(
    "metadata",
    [
        SECRET,
        {"authorization": SECRET},
        7,
        [SECRET],
        [("authorization",)],
        [("authorization", SECRET.encode())],
        [("authorization", SECRET, "more")],
        [("Authorization", SECRET)],
        [("author ization", SECRET)],
        [("", SECRET)],
        [("key-bin", SECRET)],
        [("grpc-timeout", SECRET)],
        [("authorization", f"{SECRET}\n")],
        [("authorization", f"{SECRET}ü")],
    ],
    ids=repr,
)
@pytest.mark.parametrize("make", [Client, blocking.Client], ids=["async", "blocking"])
async def test_metadata_that_cannot_be_sent_is_refused(make: Any, metadata: Any) -> None:
    """Before any call, and without showing what may be a secret."""
    with pytest.raises(InvalidArgument, match=r"^metadata: got .*, expected a list of \(key, value\)") as caught:
        make("localhost:1", metadata=metadata)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 300


# A channel -----------------------------------------------------------------------------------------------------------


async def test_a_channel_of_the_caller_is_used_and_left_open() -> None:
    """One client after the other talks over it; what one has open is left when it is closed."""

    async def left(call: Call) -> None:
        await call.open()
        await call.serve(1)
        try:
            await call.read()
        finally:
            ended.set()

    ended = asyncio.Event()
    async with recording(left, one_stream) as (address, servicer, recorder):
        answer_models(servicer)
        async with grpc.aio.insecure_channel(address) as channel:
            client = Client("elsewhere:1", channel=channel, metadata=[("authorization", SECRET)])
            stream = await client.open("a").__aenter__()
            await stream.step([1.0])
            await client.close()
            await ended.wait()
            servicer.crash(0)
            with pytest.raises(WrongOrder):
                await client.models()
            async with Client("elsewhere:1", channel=channel) as other, other.open("a") as stream:
                assert await sums(stream, [1.0, 2.0]) == [1.0, 3.0]
            await channel.unary_unary("/tidegate.v1.TidegateService/ListModels")(b"")
        assert recorder.seen == [("PredictBlocks", [SECRET]), ("PredictBlocks", []), ("ListModels", [])]


async def test_a_question_over_a_channel_of_the_caller_ends_with_the_client() -> None:
    """Nobody waits for its answer any longer."""
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Scripted):
        async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802 - as gRPC calls it
            asked.set()
            await answer.wait()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(Slow([]), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with asyncio.timeout(TIMEOUT_S), grpc.aio.insecure_channel(address) as channel:
        client = Client(address, channel=channel)
        question = asyncio.create_task(client.models())
        await asked.wait()
        await client.close()
        with pytest.raises(WrongOrder, match="closed before ListModels was answered"):
            await question
        answer.set()
    await server.stop(None)


@pytest.mark.parametrize(("field", "value"), [("credentials", "tls"), ("credentials", True), ("channel", "h:1")])
async def test_what_is_no_channel_and_no_credentials_is_refused(field: str, value: Any) -> None:
    """One sentence names what was expected."""
    more: dict[str, Any] = {field: value}
    with pytest.raises(InvalidArgument, match=rf"^{field}: got .*, expected .*grpc"):
        Client("localhost:1", **more)


async def test_a_channel_has_its_credentials_already() -> None:
    """They cannot be given beside it."""
    async with grpc.aio.insecure_channel("localhost:1") as channel:
        with pytest.raises(InvalidArgument, match=r"^credentials: got .*, expected None beside a channel"):
            Client("localhost:1", channel=channel, credentials=grpc.ssl_channel_credentials())


# Addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (
            "https://x:50051",
            "HOST:PORT; leave out 'https://', and give credentials=grpc.ssl_channel_credentials() (CLI: --tls) for TLS",
        ),
        ("http://x:50051", "HOST:PORT; leave out 'http://'"),
        ("https://x", "leave out 'https://'"),
        ("tcp://x:50051/", "HOST:PORT; leave out 'tcp://'"),
        ("localhost", "HOST:PORT, such as localhost:50051"),
        ("::1", "HOST:PORT, with an IPv6 address in brackets, such as [::1]:50051"),
        ("fd00::1:50051", "HOST:PORT, with an IPv6 address in brackets, such as [::1]:50051"),
        ("x:0", "HOST:PORT with a port from 1 to 65535, or unix:PATH"),
        ("", "HOST:PORT with a port from 1 to 65535, or unix:PATH"),
    ],
)
async def test_an_address_that_is_none_is_refused_with_what_helps(address: str, expected: str) -> None:
    """People copy them from where they mean something else."""
    with pytest.raises(InvalidArgument) as caught:
        Client(address)
    assert str(caught.value).startswith(f"address: got '{address}', expected ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("address", ["x:1", "[::1]:50051", "10.0.0.1:65535", "unix:/run/s", "dns:///x:50051"])
async def test_an_address_is_taken(address: str) -> None:
    """What gRPC reads as a host and a port, or otherwise by its scheme."""
    async with Client(address) as client:
        assert client.address == address
