"""What the server says of itself and of its models; as perf_analyzer reads it."""

from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.calls import RawCall, raw_channel
from tests.graphs import LSTM_FEATURES, lstm, running_sum, write_model
from tests.kserve.calls import StreamInfer, ask, infer_request, refusal
from tests.servers import run_server
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.servicer import UNSUPPORTED


async def test_the_server_is_live_and_ready(sum_root: Path) -> None:
    """And its model is; an unknown one is not."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert (await ask(channel, "ServerLive")).live
        assert (await ask(channel, "ServerReady")).ready
        assert (await ask(channel, "ModelReady", name="toy")).ready
        assert (await ask(channel, "ModelReady", name="toy", version="1")).ready
        assert not (await ask(channel, "ModelReady", name="toy", version="2")).ready
        assert not (await ask(channel, "ModelReady", name="other")).ready


async def test_the_server_names_its_extensions(sum_root: Path) -> None:
    """Clients look for `statistics` before they ask for them."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        metadata = await ask(channel, "ServerMetadata")
        assert metadata.name == "tidegate"
        assert {"sequence", "statistics", "model_configuration"} <= set(metadata.extensions)


async def test_metadata_and_configuration_fit_together(lstm_root: Path) -> None:
    """State is no input; the configuration leaves out the batch dimension, and says that there are sequences."""
    async with run_server(lstm_root) as server, raw_channel(server) as channel:
        metadata = await ask(channel, "ModelMetadata", name="toy")
        config = (await ask(channel, "ModelConfig", name="toy", version="1")).config
    width = len(LSTM_FEATURES)
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("toy", ["1"], "onnxruntime_onnx")
    inputs = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
    assert inputs == [("x", "FP32", [-1, width])]
    outputs = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs]
    assert outputs == [("forecast", "FP32", [-1, 2, 1])]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [("x", 11, [width])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("forecast", [2, 1])]
    assert config.max_batch_size == 16
    assert config.HasField("sequence_batching")
    assert config.sequence_batching.max_sequence_idle_microseconds == 7 * 24 * 3600 * 1_000_000
    states = [(state.input_name, state.output_name, list(state.dims)) for state in config.sequence_batching.state]
    assert states == [("last", "last_next", [width]), ("h", "h_next", [1, 16]), ("c", "c_next", [1, 16])]


async def test_statistics_count_timesteps_and_batches(sum_root: Path) -> None:
    """Those of both protocols. The three counts of computing are equal, as perf_analyzer demands."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        native = RawCall(channel)
        await native.open()
        await native.step(1.0)
        call = StreamInfer(channel)
        await call.step(7, 1.0, start=True)
        await call.step(7, 1.0)
        await call.refused(infer_request(7, float("inf")))
        (found,) = (await ask(channel, "ModelStatistics", name="toy")).model_stats
        assert (found.name, found.version) == ("toy", "1")
        assert found.inference_count == 3
        stats = found.inference_stats
        assert (stats.success.count, stats.fail.count) == (3, 1)
        assert stats.compute_input.count == stats.compute_infer.count == stats.compute_output.count == 3
        assert stats.queue.count == found.execution_count == 4  # a lone timestep is a batch of its own
        assert 0 < stats.compute_infer.ns < stats.success.ns
        assert len((await ask(channel, "ModelStatistics")).model_stats) == 1


async def test_the_repository_is_listed(tmp_path: Path) -> None:
    """All versions of all models; one is described on request, and the newest without a version."""
    root = write_model(tmp_path, running_sum())
    write_model(root, running_sum(), version="2")
    write_model(root, lstm(), name="lstm", version="10")
    async with run_server(root, load=("toy/1", "toy/2", "lstm")) as server, raw_channel(server) as channel:
        index = (await ask(channel, "RepositoryIndex")).models
        listed = {(model.name, model.version, model.state) for model in index}
        assert listed == {("toy", "1", "READY"), ("toy", "2", "READY"), ("lstm", "10", "READY")}
        assert list((await ask(channel, "ModelMetadata", name="toy")).versions) == ["1", "2"]
        assert len((await ask(channel, "ModelStatistics", name="toy")).model_stats) == 2
        assert len((await ask(channel, "ModelStatistics", name="toy", version="2")).model_stats) == 1


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_an_unknown_model_is_not_found(sum_root: Path, method: str) -> None:
    """With the names of those that are served."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        refused = await refusal(ask(channel, method, name="other"))
        assert refused.code is grpc.StatusCode.NOT_FOUND
        assert "toy/1" in refused.message


@pytest.mark.parametrize("method", sorted(UNSUPPORTED))
async def test_what_is_not_served_says_so(sum_root: Path, method: str) -> None:
    """With what to do instead."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        refused = await refusal(channel.unary_unary(f"/{messages.SERVICE_NAME}/{method}")(b"\x0a\x01a"))
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED
        assert refused.message == f"{method}: {UNSUPPORTED[method]}"


async def test_reflection_describes_the_service(sum_root: Path) -> None:
    """Though its messages are not in protobuf's default pool."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=messages.SERVICE_NAME)
        call = stub.ServerReflectionInfo(iter([request]))
        (file,) = (await call.read()).file_descriptor_response.file_descriptor_proto
        described = descriptor_pb2.FileDescriptorProto.FromString(file)
        assert [service.name for service in described.service] == ["GRPCInferenceService"]
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        services = {service.name for service in (await call.read()).list_services_response.service}
        assert {messages.SERVICE_NAME, "tidegate.v1.TidegateService"} <= services
