"""Models are loaded and unloaded over the KServe protocol, and sequences go on under the version they began with."""

from pathlib import Path

import grpc

from tests.calls import raw_channel
from tests.graphs import lstm
from tests.kserve.calls import StreamInfer, ask, infer, infer_request, raw_outputs, refusal
from tests.servers import run_server
from tests.serving.test_access import bearer, guarded
from tests.serving.test_live_models import put
from tidegate.rpc.kserve.messages import message_class


async def test_a_new_version_is_for_new_sequences(sum_root: Path) -> None:
    """A live sequence goes on under its version, also over another call; a start without a version gets the new one."""
    async with run_server(sum_root, models_poll=0) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        put(sum_root, lstm(), "2")
        await ask(channel, "RepositoryModelLoad", model_name="toy")
        assert (await call.step(7, 2.0)).model_version == "1"
        assert (await StreamInfer(channel).step(7, 3.0)).model_version == "1"
        assert (await infer(channel, 7, 4.0)).model_version == "1"
        anew = await infer(channel, 7, *[0.0] * 8, start=True)
        assert anew.model_version == "2"
        assert list(raw_outputs(anew)) == ["forecast"]
        assert (await infer(channel, 8, 1.0, start=True, version="1")).model_version == "1"
        index = (await ask(channel, "RepositoryIndex")).models
        assert {(model.name, model.version) for model in index} == {("toy", "1"), ("toy", "2")}
        assert len((await ask(channel, "ModelStatistics", name="toy")).model_stats) == 2


async def test_what_cannot_be_loaded_or_unloaded_says_why(sum_root: Path) -> None:
    """And changes nothing. Files do not come from clients."""
    async with run_server(sum_root, models_poll=0) as server, raw_channel(server) as channel:
        last = await refusal(ask(channel, "RepositoryModelUnload", model_name="toy"))
        assert last.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "toy/1: " in last.message
        unknown = await refusal(ask(channel, "RepositoryModelLoad", model_name="pond"))
        assert unknown.code is grpc.StatusCode.NOT_FOUND
        request = message_class("RepositoryModelLoadRequest")(model_name="toy")
        request.parameters["config"].string_param = "{}"
        config = await refusal(ask(channel, "RepositoryModelLoad", request))
        assert config.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "models are read from disk" in config.message
        assert server.titles == ["toy/1"]
        call = StreamInfer(channel)
        assert "'pond' is not served" in (await call.refused(infer_request(7, 1.0, model="pond"))).error_message


async def test_only_an_administrator_changes_models(sum_root: Path, tmp_path: Path) -> None:
    """As over our own protocol."""
    async with guarded(sum_root, tmp_path, "a", "admin", models_poll=0) as server, raw_channel(server) as channel:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            refused = await refusal(ask(channel, method, model_name="toy", metadata=bearer("a-token")))
            assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        await ask(channel, "RepositoryModelLoad", model_name="toy", metadata=bearer("admin-token"))
