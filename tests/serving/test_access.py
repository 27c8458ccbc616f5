"""Tokens and tenants: who gets in, what is theirs, and how much they may do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.servers import address_of, run_server, scrape
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import (
    Client,
    ClientError,
    StreamNotFound,
    TooManyStreams,
    Unauthenticated,
)
from tidegate.core.access import TokenBucket
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.server import Server
from tidegate.runtime.token_file import InvalidTokenFile, Tokens, token_hash
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


def token_file(path: Path, *tenants: str, extra: str = "") -> Path:
    """A file with the token "NAME-token" for each tenant; a tenant named "admin" may administer. Written by rename."""
    entries = [
        f'[[token]]\nsha256 = "{token_hash(name + "-token")}"\ntenant = "{name}"\nadmin = {str(name == "admin").lower()}\n'
        for name in tenants
    ]
    new = path.with_suffix(".new")
    new.write_text("\n".join(entries) + extra, "utf-8")
    return new.rename(path)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata with a token."""
    return (("authorization", f"Bearer {token}"),)


def client_of(server: Server, tenant: str, **options: Any) -> Client:
    """A client with the token of a tenant."""
    return Client(address_of(server), metadata=bearer(f"{tenant}-token"), **options)


@asynccontextmanager
async def guarded(root: Path, folder: Path, *tenants: str, extra: str = "", **settings: Any) -> AsyncIterator[Server]:
    """A server with a token for each tenant."""
    path = token_file(folder / "tokens.toml", *tenants, extra=extra)
    async with run_server(root, tokens=str(path), **settings) as server:
        yield server


# Who gets in ----------------------------------------------------------------------------------------------------------

UNARY = {
    "ListModels": pb.ListModelsRequest(),
    "DescribeModel": pb.DescribeModelRequest(name="toy"),
    "LoadModel": pb.LoadModelRequest(name="toy"),
    "UnloadModel": pb.UnloadModelRequest(name="toy"),
    "ReloadModels": pb.ReloadModelsRequest(),
    "ListVersions": pb.ListVersionsRequest(),
    "PromoteModel": pb.PromoteModelRequest(name="toy", version="1"),
    "RollbackModel": pb.RollbackModelRequest(name="toy"),
    "ListStreams": pb.ListStreamsRequest(),
    "DescribeStream": pb.DescribeStreamRequest(stream_id="a"),
    "DeleteStream": pb.DeleteStreamRequest(stream_id="a"),
    "ExportStream": pb.ExportStreamRequest(stream_id="a"),
    "ImportStream": pb.ImportStreamRequest(checkpoint=b"x"),
    "ForkStream": pb.ForkStreamRequest(stream_id="a"),
    "PredictOne": pb.PredictOneRequest(stream_id="a", step=1),
}
BAD = {
    "none": (),
    "unknown": bearer("other-token"),
    "empty": bearer(""),
    "basic": (("authorization", "Basic a-token"),),
}


def test_every_unary_method_is_tried() -> None:
    """A new method must not be forgotten here."""
    methods = pb.DESCRIPTOR.services_by_name["TidegateService"].methods
    assert {method.name for method in methods if not method.client_streaming} == set(UNARY)


async def test_only_an_admin_changes_models(sum_root: Path, tmp_path: Path) -> None:
    """A tenant is refused, and nothing happens."""
    async with guarded(sum_root, tmp_path, "a", "admin") as server:
        for action in ("load", "unload", "reload"):
            async with client_of(server, "a") as client:
                with pytest.raises(ClientError, match="admin"):
                    await client.change_models(action, "toy")
        async with client_of(server, "a") as client:
            with pytest.raises(ClientError, match="admin"):
                await client.promote("toy", "1")
            with pytest.raises(ClientError, match="admin"):
                await client.rollback("toy")
        assert not (sum_root / "toy" / "promoted.json").exists()
        async with client_of(server, "admin") as client:
            assert await client.change_models("reload") == []
    assert server.titles == ["toy/1"]


@pytest.mark.parametrize("metadata", BAD.values(), ids=BAD)
async def test_nobody_gets_in_without_a_valid_token(sum_root: Path, tmp_path: Path, metadata: Any) -> None:
    """Each method ends UNAUTHENTICATED before it does anything."""
    async with guarded(sum_root, tmp_path, "a") as server:
        async with grpc.aio.insecure_channel(address_of(server)) as channel:
            stub: Any = pb_grpc.TidegateServiceStub(channel)
            for name, request in UNARY.items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, name)(request, metadata=metadata, timeout=TIMEOUT_S)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
            for name in ("Predict", "PredictBlocks"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub, name)(metadata=metadata, timeout=TIMEOUT_S).read()
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
        metrics = await scrape(server)
        assert metrics("tidegate_access_refused_total", reason="unauthenticated") == len(UNARY) + 2


async def test_a_client_with_a_token_gets_in(sum_root: Path, tmp_path: Path) -> None:
    """Its streams are answered."""
    async with guarded(sum_root, tmp_path, "a") as server, client_of(server, "a") as client, client.open("s") as stream:
        assert (await stream.step([1.0]))["sum"].item() == 1.0


async def test_a_client_without_a_token_gets_an_error_with_a_name(sum_root: Path, tmp_path: Path) -> None:
    """It does not try again: that cannot help."""
    async with guarded(sum_root, tmp_path, "a") as server, Client(address_of(server)) as client:
        with pytest.raises(Unauthenticated, match="authorization"):
            async with client.open("s"):
                pass


async def test_no_secret_is_in_the_log(sum_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a token that got in nor one that did not."""
    caplog.set_level("DEBUG")
    async with guarded(sum_root, tmp_path, "a") as server:
        async with client_of(server, "a") as client, client.open("s") as stream:
            await stream.step([1.0])
        async with client_of(server, "other") as client:
            with pytest.raises(Unauthenticated):
                await client.models()
    assert "-token" not in caplog.text


# What is theirs -------------------------------------------------------------------------------------------------------


async def test_a_tenant_does_not_see_the_streams_of_another(sum_root: Path, tmp_path: Path) -> None:
    """It can neither list, describe, export, fork nor delete them, and an open of the same name is its own stream."""
    async with (
        guarded(sum_root, tmp_path, "a", "b") as server,
        client_of(server, "a") as first,
        client_of(server, "b") as second,
        first.open("s") as stream,
    ):
        await stream.step([5.0])
        assert [one.stream_id async for one in first.streams()] == ["s"]
        assert [one.stream_id async for one in second.streams()] == []
        for call in (second.describe_stream, second.export_stream, second.delete_stream):
            with pytest.raises(StreamNotFound):
                await call("s")
        with pytest.raises(StreamNotFound):
            await second.fork_stream("s", "t")
        async with second.open("s") as other:
            assert (other.kind, (await other.step([1.0]))["sum"].item()) == ("new", 1.0)
        assert (await second.predict_one("s", [1.0], step=2))["sum"].item() == 2.0
        assert (await stream.step([1.0]))["sum"].item() == 6.0  # nobody took it over


async def test_a_tenant_does_not_reach_the_streams_of_another_by_other_calls(sum_root: Path, tmp_path: Path) -> None:
    """Not by a call with blocks, by an open that must exist, by an import of the same name, nor by a page that begins elsewhere."""
    async with (
        guarded(sum_root, tmp_path, "a", "b") as server,
        client_of(server, "a") as first,
        client_of(server, "b") as second,
        first.open("s") as stream,
    ):
        await stream.step([5.0])
        for open_it in (second.open("s", existence="must_exist"), second.block(["s"], existence="must_exist")):
            with pytest.raises(StreamNotFound):
                async with open_it:
                    pass
        async with second.block(["s"]) as block:
            assert (await block.step(np.ones((1, 1), np.float32))).outputs["sum"].item() == 1.0
        await second.import_stream(await first.export_stream("s"), "t")
        await second.delete_stream("t")
        await second.delete_stream("s")
        async with grpc.aio.insecure_channel(address_of(server)) as channel:
            stub: Any = pb_grpc.TidegateServiceStub(channel)
            for token in ("", "a", "a/", "r", "\U0010ffff"):
                request = pb.ListStreamsRequest(page_token=token)
                answer = await stub.ListStreams(request, metadata=bearer("b-token"), timeout=TIMEOUT_S)
                assert not answer.streams
        assert (await stream.step([1.0]))["sum"].item() == 6.0  # nobody took it over or deleted it


async def test_an_export_of_one_tenant_becomes_a_stream_of_the_other(sum_root: Path, tmp_path: Path) -> None:
    """The record does not say whose it is: who imports it owns it."""
    async with (
        guarded(sum_root, tmp_path, "a", "b") as server,
        client_of(server, "a") as first,
        client_of(server, "b") as second,
    ):
        async with first.open("s") as stream:
            await stream.step([5.0])
        record = await first.export_stream("s")
        await first.delete_stream("s")
        await second.import_stream(record)
        assert [one.stream_id async for one in first.streams()] == []
        assert [one.stream_id async for one in second.streams()] == ["s"]


# How much -------------------------------------------------------------------------------------------------------------


async def test_a_tenant_has_no_more_streams_than_it_may(sum_root: Path, tmp_path: Path) -> None:
    """Live and parked ones count, and another tenant has room."""
    limits = "[tenant.a]\nstreams_max = 2\n"
    async with (
        guarded(sum_root, tmp_path, "a", "b", extra=limits) as server,
        client_of(server, "a", timeout_s=1.0, reconnect_s=0.5) as first,
        client_of(server, "b") as second,
    ):
        for name in ("x", "y"):
            async with first.open(name):
                pass
        with pytest.raises(TooManyStreams, match="the tenant"):
            async with first.open("z"):
                pass
        async with first.open("x"), second.open("z"):
            pass
        await first.delete_stream("x")
        await asyncio.sleep(1.1)  # the store is asked again after a second
        async with first.open("z"):
            pass


async def test_a_tenant_has_no_more_live_streams_than_it_may(sum_root: Path, tmp_path: Path) -> None:
    """On all its connections together; a parked stream makes room."""
    limits = "[tenant.a]\nlive_max = 1\n"
    async with (
        guarded(sum_root, tmp_path, "a", extra=limits) as server,
        client_of(server, "a", timeout_s=1.0, reconnect_s=0.5) as first,
        client_of(server, "a", timeout_s=1.0, reconnect_s=0.5) as second,
    ):
        async with first.open("x"):
            with pytest.raises(TooManyStreams, match="the tenant"):
                async with second.open("y"):
                    pass
        await eventually(lambda: not sum(len(served.slots) for served in server.repository), "parking")
        async with second.open("y"):
            pass


async def test_timesteps_beyond_the_rate_come_later(sum_root: Path, tmp_path: Path) -> None:
    """The client waits and sends them again, so none is lost; the metric counts the refusals."""
    limits = "[tenant.a]\nsteps_per_second = 20\n"
    async with guarded(sum_root, tmp_path, "a", extra=limits) as server, client_of(server, "a") as client:
        async with client.open("s") as stream:
            sums = [(await stream.step([1.0]))["sum"].item() for _ in range(30)]
        metrics = await scrape(server)
    assert sums == [float(number) for number in range(1, 31)]
    assert metrics("tidegate_access_refused_total", reason="steps") > 0


async def test_opens_beyond_the_rate_come_later(sum_root: Path, tmp_path: Path) -> None:
    """A flood of opens is spread over time."""
    limits = "[tenant.a]\nopens_per_second = 20\n"
    async with guarded(sum_root, tmp_path, "a", extra=limits) as server, client_of(server, "a") as client:
        async with client.block([f"s{number}" for number in range(30)]) as block:
            answer = await block.step(np.ones((30, 1), np.float32))
        metrics = await scrape(server)
    assert not answer.errors
    assert metrics("tidegate_access_refused_total", reason="opens") > 0


@pytest.mark.parametrize(
    ("counts", "now", "wait"),
    [([10], 0.0, 0.0), ([10, 1], 0.0, 0.1), ([25], 0.0, 0.0), ([25, 1], 1.0, 0.6), ([25, 1], 2.0, 0.0)],
    ids=["a second's worth", "empty", "more than a second's worth", "in debt", "paid"],
)
def test_a_bucket_fills_at_its_rate(counts: list[int], now: float, wait: float) -> None:
    """Ten a second; the last is taken at `now`, the others at 0."""
    bucket = TokenBucket(10)
    for count in counts[:-1]:
        assert bucket.take(count, 0.0) == 0.0
    assert bucket.take(counts[-1], now) == pytest.approx(wait)


# The file -------------------------------------------------------------------------------------------------------------


async def test_a_withdrawn_token_ends_its_calls(sum_root: Path, tmp_path: Path) -> None:
    """Within a second; what was answered is stored, and others are not disturbed."""
    path = tmp_path / "tokens.toml"
    async with (
        guarded(sum_root, tmp_path, "a", "b") as server,
        client_of(server, "a") as first,
        client_of(server, "b") as second,
        second.open("t") as other,
    ):

        async def step_for_ever() -> None:
            async with asyncio.timeout(TIMEOUT_S), first.open("s") as stream:
                while True:
                    await stream.step([1.0])
                    started.set()
                    await asyncio.sleep(0.02)

        started = asyncio.Event()
        stepping = asyncio.create_task(step_for_ever())
        await started.wait()
        token_file(path, "b")
        with pytest.raises(Unauthenticated):
            await stepping
        assert (await other.step([1.0])).step == 1
        token_file(path, "a", "b")
        await eventually(lambda: server._access.limits_of("a") is not None and "a" in server._access._tokens.tenants)
        async with first.open("s", existence="must_exist") as again:
            assert again.next_step > 1


async def test_a_broken_file_leaves_the_tokens_before(
    sum_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once what is wrong."""
    async with guarded(sum_root, tmp_path, "a") as server, client_of(server, "a") as client:
        (tmp_path / "tokens.toml").write_text("[[token]]\nsha256 = 'a-token'\n", "utf-8")
        await eventually(lambda: "is not read again" in caplog.text)
        await client.models()
    assert "sha256: expected 64 hexadecimal digits" in caplog.text
    assert "a-token" not in caplog.text


HASH = "0" * 64
FILES = {
    "no TOML": ("x", "not TOML"),
    "unknown key": (f'[[token]]\nsha256 = "{HASH}"\ntenant = "a"\nadmn = true', "token[0].admn"),
    "no tenant": (f'[[token]]\nsha256 = "{HASH}"', "token[0].tenant"),
    "a token instead of its hash": ('[[token]]\nsha256 = "secret"\ntenant = "a"', "64 hexadecimal digits"),
    "twice": (2 * f'[[token]]\nsha256 = "{HASH}"\ntenant = "a"\n', "is there twice"),
    "limits of nobody": ("[tenant.a]\nlive_max = 1", "no token has this tenant"),
    "a limit of 0": (f'[[token]]\nsha256 = "{HASH}"\ntenant = "a"\n[tenant.a]\nlive_max = 0', "tenant.a.live_max"),
    "a name with a slash": (f'[[token]]\nsha256 = "{HASH}"\ntenant = "a/b"', "token[0].tenant"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_mistake_in_the_file_is_named(text: str, message: str) -> None:
    """With its place, and without what stands there: it may be a secret."""
    with pytest.raises(InvalidTokenFile) as caught:
        Tokens.parse(text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_missing_file_stops_the_start(sum_root: Path, tmp_path: Path) -> None:
    """A server that lets everybody in instead would be worse than none."""
    with pytest.raises(StartFailed, match="No such file"):
        async with run_server(sum_root, tokens=str(tmp_path / "none.toml")):
            pass


def test_a_tenant_keeps_what_it_has_used_when_the_file_is_read_again() -> None:
    """Else a change of another tenant's limits would refill its bucket."""
    entry = f'[[token]]\nsha256 = "{HASH}"\ntenant = "a"\n[tenant.a]\nsteps_per_second = '
    before = Tokens.parse(entry + "5")
    assert Tokens.parse(entry + "5", before).tenants["a"] is before.tenants["a"]
    assert Tokens.parse(entry + "6", before).tenants["a"] is not before.tenants["a"]
