"""Tokens and tenants over the KServe protocol, as over our own."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.calls import raw_channel
from tests.kserve.calls import StreamInfer, ask, infer_request, parameters_of, raw_outputs, refusal
from tests.serving.test_access import bearer, guarded, token_file
from tidegate.rpc.kserve import messages

UNARY = (
    *("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelInfer"),
)


def test_every_method_is_tried() -> None:
    """A new method must not be forgotten here."""
    service = messages.POOL.FindServiceByName(messages.SERVICE_NAME)
    methods = {method.name for method in service.methods}
    assert methods == {*UNARY, "ModelStreamInfer", "ServerLive", "ServerReady"}


async def test_nobody_gets_in_without_a_token(sum_root: Path, tmp_path: Path) -> None:
    """Only whether the server is live and ready is for everybody."""
    async with guarded(sum_root, tmp_path, "a") as server, raw_channel(server) as channel:
        for method in UNARY:
            assert (await refusal(ask(channel, method))).code is grpc.StatusCode.UNAUTHENTICATED, method
        ending = await StreamInfer(channel).ending()
        assert ending.code is grpc.StatusCode.UNAUTHENTICATED
        assert (await ask(channel, "ServerLive")).live
        assert (await ask(channel, "ServerReady")).ready
        assert (await ask(channel, "ModelReady", name="toy", metadata=bearer("a-token"))).ready


async def test_the_sequences_of_a_tenant_are_its_own(sum_root: Path, tmp_path: Path) -> None:
    """The same id is another sequence for another tenant; in both methods."""
    async with guarded(sum_root, tmp_path, "a", "b") as server, raw_channel(server) as channel:
        a, b = (StreamInfer(channel, bearer(f"{tenant}-token")) for tenant in "ab")
        await a.step(7, 1.0, start=True)
        assert "must specify the START flag" in (await b.refused(infer_request(7, 1.0))).error_message
        await b.step(7, 10.0, start=True)
        requests = {tenant: infer_request(7, 5.0) for tenant in "ab"}
        answers = [await ask(channel, "ModelInfer", requests[each], bearer(f"{each}-token")) for each in "ab"]
        sums = [float(np.frombuffer(raw_outputs(answer)["sum"], "<f4")[0]) for answer in answers]
        assert sums == [6.0, 15.0]


async def test_a_tenant_that_sends_too_fast_is_refused(sum_root: Path, tmp_path: Path) -> None:
    """Its timesteps over a stream and in unary calls count together."""
    extra = "\n[tenant.a]\nsteps_per_second = 0.01\n"
    async with guarded(sum_root, tmp_path, "a", extra=extra) as server, raw_channel(server) as channel:
        call = StreamInfer(channel, bearer("a-token"))
        await call.step(7, 1.0, start=True)
        await call.step(7, 1.0)  # the limit allows a debt of one message
        refused = await call.refused(infer_request(7, 1.0, request_id="x"))
        assert "the tenant may send 0.01 timesteps a second" in refused.error_message
        assert refused.infer_response.id == "x"
        assert parameters_of(refused.infer_response)["reason"] == "OVERLOADED"
        unary = await refusal(ask(channel, "ModelInfer", infer_request(7, 1.0), bearer("a-token")))
        assert unary.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("unary", [False, True])
async def test_a_tenant_that_opens_too_fast_is_refused(sum_root: Path, tmp_path: Path, unary: bool) -> None:
    """A start is an open, and so is a resume."""
    extra = "\n[tenant.a]\nopens_per_second = 0.01\n"
    async with guarded(sum_root, tmp_path, "a", extra=extra) as server, raw_channel(server) as channel:
        call = StreamInfer(channel, bearer("a-token"))
        for sequence in (7, 9):  # the limit allows a debt of one open
            await call.step(sequence, 1.0, start=True)
        request = infer_request(8, 1.0, start=True)
        if unary:
            message = (await refusal(ask(channel, "ModelInfer", request, bearer("a-token")))).message
        else:
            message = (await call.refused(request)).error_message
        assert "the tenant may open 0.01 streams a second" in message


async def test_a_withdrawn_token_ends_the_call(sum_root: Path, tmp_path: Path) -> None:
    """As soon as the server has read the file again."""
    async with guarded(sum_root, tmp_path, "a", "b") as server, raw_channel(server) as channel:
        call = StreamInfer(channel, bearer("a-token"))
        await call.step(7, 1.0, start=True)
        ending = asyncio.create_task(call.ending())
        token_file(tmp_path / "tokens.toml", "b")
        assert (await ending).code is grpc.StatusCode.UNAUTHENTICATED
