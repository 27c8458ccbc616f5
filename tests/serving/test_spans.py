"""Spans for OpenTelemetry: real servers, real clients, and a collector that receives them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import pack
from tests.collectors import Collector, ReceivedSpan, grpc_collector, http_collector
from tests.graphs import inverse, picky, running_sum, write_model
from tests.kserve.calls import ask, infer_request
from tests.moves import GRAPHS, K
from tests.oracle import sensor_rows
from tests.root import ROOT
from tests.servers import Process, environment, serve
from tests.serving.test_secured_commands import new_token
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client, StreamNotFound
from tidegate.runtime.collector import find_collector
from tidegate.runtime.promotion import Promotion, write_promotion
from tidegate.runtime.span import NO_SPAN
from tidegate.runtime.spans import Spans
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = ("traceparent", f"00-{TRACE}-{CALLER}-01")
SERVER, INTERNAL = 2, 1  # kinds of spans


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine decides; spans are sent after a moment."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector over gRPC."""
    with grpc_collector() as collector:
        yield collector


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one model."""
    return write_model(tmp_path / "models", running_sum())


async def step(address: str, stream_id: str, steps: int = 1, **settings: Any) -> None:
    """Opens a stream with our client, and sends some timesteps."""
    async with Client(address, **settings) as client, client.open(stream_id) as stream:
        for _ in range(steps):
            await stream.step([1.0])


def terminate(process: Process) -> str:
    """Has a server drain. Returns its log."""
    process.signal(signal.SIGTERM)
    code, _, err = process.wait()
    assert code == 0, err
    return err


def told(span: ReceivedSpan) -> dict[str, Any]:
    """The attributes of a span, without those that change from run to run."""
    return {name.removeprefix("tidegate."): value for name, value in span.attributes.items()}


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_the_life_of_a_stream_is_seen(tmp_path: Path, root: Path, collector: Collector, workers: str) -> None:
    """It is opened, and resumed after the server was killed; the server drains. No timestep has a span."""
    options = ("--workers", workers, "--state", f"sqlite:///{tmp_path / 'db'}", "--otlp-endpoint", collector.address)
    with serve(root, *options) as process:
        await step(process.address, "boiler", steps=20)
        collector.until(lambda it: bool(it.spans))
        process.signal(signal.SIGKILL)
        process.wait()
    left = 0 if workers == "1" else 2  # workers whose supervisor was killed drain
    collector.until(lambda it: len(it.named("tidegate.drain")) == left)
    with serve(root, *options) as process:
        await step(process.address, "boiler", steps=20)
        terminate(process)
    (opened,), (resumed,) = collector.named("tidegate.open"), collector.named("tidegate.resume")
    drained = collector.named("tidegate.drain")
    common = {"tenant": "default", "stream": "boiler", "model": "toy", "version": "1"}
    assert told(opened) == {"event": "new", "step": 0, "epoch": 1, **common}
    assert told(resumed) == {"event": "resumed", "step": 20, "epoch": 2, **common}
    assert {span.kind for span in (opened, resumed)} == {SERVER}
    assert len(collector.spans) == 2 + len(drained)
    assert len({span.resource["service.instance.id"] for span in drained}) == len(drained) == left + int(workers)
    assert not any(span.failed for span in collector.spans)
    assert {span.resource["service.name"] for span in collector.spans} == {"tidegate"}


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """A folder with two versions, the first of them promoted."""
    models = tmp_path / "models"
    for version, graph in GRAPHS.items():
        write_model(models, graph, version=version)
    (models / "toy" / "serving.toml").write_text(f'policy = "rewarm"\nrewarm_steps = {K}\n')
    write_promotion(models / "toy", Promotion("1"))
    return models


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_a_swap_is_seen(tmp_path: Path, versions: Path, collector: Collector, workers: str) -> None:
    """Of a live stream it has a trace of its own, which refers to that of the call; at an open it is a part of it."""

    async def swap_both(address: str) -> None:
        rows = sensor_rows(200)
        async with Client(address, metadata=[PARENT]) as client:
            async with client.open("parked") as stream:
                await stream.step(rows[0])
            async with client.open("live") as stream:
                await stream.step(rows[0])
                await client.promote("toy", "2")
                for row in rows[1:]:
                    await stream.step(row)
                    if stream.version == "2":
                        break
                    await asyncio.sleep(0.1)  # the other worker looks from time to time
            async with client.open("parked") as stream:
                assert stream.version == "2"

    state = f"sqlite:///{tmp_path / 'db'}"
    with serve(versions, "--workers", workers, "--state", state, "--otlp-endpoint", collector.address) as process:
        await swap_both(process.address)
        terminate(process)
    live, parked = sorted(collector.named("tidegate.swap"), key=lambda span: told(span)["stream"])
    expected = {"event": "moved", "tenant": "default", "model": "toy", "version": "2", "previous_version": "1"}
    for span, stream in ((live, "live"), (parked, "parked")):
        assert told(span).items() >= {**expected, "stream": stream, "state": "rewarmed"}.items()
        assert span.kind == INTERNAL
    (resumed,) = collector.named("tidegate.resume")
    assert (parked.trace, parked.parent, parked.links) == (TRACE, resumed.id, ())
    assert (live.parent, live.links) == ("", ((TRACE, CALLER),))
    assert live.trace != TRACE


async def test_a_swap_that_fails_is_seen(tmp_path: Path, collector: Collector) -> None:
    """With the reason; the stream stays where it is."""
    root = write_model(tmp_path / "models", inverse(), version="1")
    write_model(root, picky(), version="2")  # it raises on a 99
    (root / "toy" / "serving.toml").write_text('policy = "rewarm"\nrewarm_steps = 4\n')
    write_promotion(root / "toy", Promotion("1"))
    with serve(root, "--otlp-endpoint", collector.address) as process:
        async with Client(process.address) as client, client.open("a") as stream:
            await stream.step([99.0])
            await client.promote("toy", "2")
            await stream.step([99.0])
            assert stream.version == "1"
        terminate(process)
    swap = collector.named("tidegate.swap")[0]
    assert (swap.failed, swap.attributes["error.type"]) == (True, "ModelFailed")
    assert told(swap).items() >= {"event": "not_moved", "stream": "a", "reason": swap.message}.items()


async def predict(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Opens a stream with `Predict`."""
    call = pb_grpc.TidegateServiceStub(channel).Predict(metadata=metadata)
    await call.write(pb.PredictRequest(open=pb.Open(stream_id="predict")))
    assert await call.read() is not grpc.aio.EOF
    await call.done_writing()


async def predict_one(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Opens a stream with `PredictOne`."""
    request = pb.PredictOneRequest(stream_id="predict_one", values=pack(1.0))
    for _ in range(3):
        await pb_grpc.TidegateServiceStub(channel).PredictOne(request, metadata=metadata)


async def infer(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Opens a stream with `ModelInfer` of KServe."""
    await ask(channel, "ModelInfer", infer_request("infer", 1.0, start=True), metadata)


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_client_finds_the_open_in_its_trace(root: Path, collector: Collector, sampled: bool) -> None:
    """By every call that opens streams, if the client records its trace."""
    metadata = (PARENT if sampled else (PARENT[0], PARENT[1][:-2] + "00"), ("authorization", "Bearer no-secret"))
    with serve(root, "--otlp-endpoint", collector.address) as process:
        await step(process.address, "blocks", 2, metadata=metadata)
        async with grpc.aio.insecure_channel(process.address) as channel:
            for call in (predict, predict_one, infer):
                await call(channel, metadata)
        terminate(process)
    (drained,) = collector.named("tidegate.drain")
    assert drained.trace != TRACE
    collector.spans.remove(drained)
    assert {(span.trace, span.parent) for span in collector.spans} == ({(TRACE, CALLER)} if sampled else set())
    streams = sorted(told(span)["stream"] for span in collector.spans)
    assert streams == (["blocks", "infer", "predict", "predict_one"] if sampled else [])


@pytest.mark.parametrize("header", ["", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", "x" * 500])
async def test_a_wrong_traceparent_is_ignored(root: Path, collector: Collector, header: str) -> None:
    """The stream is opened, in a trace of its own."""
    with serve(root, "--otlp-endpoint", collector.address) as process:
        await step(process.address, "a", metadata=[("traceparent", header)])
        terminate(process)
    (opened,) = collector.named("tidegate.open")
    assert (opened.parent, len(opened.trace), opened.failed) == ("", 32, False)


async def test_an_open_that_is_refused_has_failed(tmp_path: Path, root: Path, collector: Collector) -> None:
    """With the reason; the token of the client is nowhere."""
    path, lines = new_token(tmp_path, "plant-1")
    (tmp_path / "tokens.toml").write_text(lines)
    token = path.read_text().strip()
    options = ("--tokens", str(tmp_path / "tokens.toml"), "--otlp-endpoint", collector.address)
    with serve(root, *options) as process:
        async with Client(process.address, metadata=[("authorization", f"Bearer {token}")]) as client:
            with pytest.raises(StreamNotFound):
                async with client.open("boiler", model="toy", existence="must_exist"):
                    pass
        terminate(process)
    (refused,) = collector.named("tidegate.open")
    assert (refused.failed, refused.attributes["error.type"]) == (True, "StreamNotFound")
    assert "boiler" in refused.message
    expected = {"event": "refused", "tenant": "plant-1", "stream": "boiler", "model": "toy", "reason": refused.message}
    assert told(refused).items() >= expected.items()
    assert token.encode() not in collector.received


async def test_variables_say_where_spans_are_sent(
    root: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for every program: the collector, its headers, and the name of the service."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=1234")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "plant")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    with serve(root) as process:
        await step(process.address, "a")
        err = terminate(process)
    (opened,) = collector.named("tidegate.open")
    assert opened.resource.items() >= {"service.name": "plant", "deployment.environment": "test"}.items()
    assert {headers["api-key"] for headers in collector.headers} == {"1234"}
    assert "1234" not in err


@pytest.mark.parametrize("by_option", [True, False])
async def test_spans_go_over_http_too(root: Path, monkeypatch: pytest.MonkeyPatch, by_option: bool) -> None:
    """For collectors that take nothing else."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with http_collector() as collector:
        if not by_option:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        with serve(root, *(("--otlp-endpoint", collector.address) if by_option else ())) as process:
            await step(process.address, "a")
            terminate(process)
    assert [span.name for span in collector.spans] == ["tidegate.open", "tidegate.drain"]


def python(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """A command in a new Python, with additional variables: one that was forked has imported and found its modules."""
    command = [sys.executable, "-m", "tidegate", *arguments]
    env = environment() | {"PYTHONPATH": str(ROOT / "src")} | variables
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_without_a_collector_nothing_of_it_is_imported(tmp_path: Path, root: Path, workers: str) -> None:
    """By no process of a server that serves, and drains."""
    options = ("--models", str(root), "--port", "0", "--metrics-port", "0", "--workers", workers)
    state = f"sqlite:///{tmp_path / 'db'}"
    # Each import is a line on stderr.
    with python("serve", *options, "--state", state, PYTHONPROFILEIMPORTTIME="1") as popen:
        with ThreadPoolExecutor() as pool:  # stderr is read meanwhile, or the server would wait
            log = pool.submit(lambda: popen.stderr.read() if popen.stderr is not None else "")
            assert popen.stdout is not None
            address = popen.stdout.readline().split("grpc=")[1].split()[0]
            asyncio.run(step(address, "a"))
            popen.terminate()
            text = log.result(TIMEOUT_S)
        assert popen.wait(TIMEOUT_S) == 0
    assert text.count("tidegate.runtime.spans\n") == int(workers)
    assert "opentelemetry" not in text


def test_without_a_collector_a_span_does_nothing() -> None:
    """It is the same object for all, and no call is intercepted."""
    spans = Spans()
    spans.start("")
    assert spans.span("open", of_call=True, model="toy") is NO_SPAN
    assert spans.interceptors() == []


@pytest.mark.parametrize("how", ["refuses", "hangs"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_gone_harms_nobody(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str, protocol: str
) -> None:
    """More spans than the queue holds are dropped; streams are opened and answered, and the server stops in time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")  # the exporter itself would wait for so long
    with socket.create_server(("127.0.0.1", 0)) as port:  # connections are made, and nobody reads
        endpoint = f"http://127.0.0.1:{port.getsockname()[1]}"
        if how == "refuses":
            port.close()
        with serve(root, "--otlp-endpoint", endpoint) as process:
            async with Client(process.address) as client, client.block([f"s{n}" for n in range(300)]) as block:
                answers = await block.step(np.ones((300, 1), np.float32))
            assert not answers.errors
            begun = time.monotonic()
            err = terminate(process)
            took = time.monotonic() - begun
    assert took < 20, err  # without a deadline of our own it is half a minute, or ten
    assert "Queue full" in err
    assert "Traceback" not in err


def hidden(tmp_path: Path) -> str:
    """A search path on which the packages of the extra are not found."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    return f"{tmp_path}:{ROOT / 'src'}"


def test_without_the_extra_the_option_is_refused(tmp_path: Path, root: Path) -> None:
    """In one line that says what to install."""
    options = ("--models", str(root), "--otlp-endpoint", "http://localhost:4317", "--check")
    with python("serve", *options, PYTHONPATH=hidden(tmp_path)) as popen:
        _, err = popen.communicate(timeout=TIMEOUT_S)
    expected = "error: --otlp-endpoint: OpenTelemetry for grpc is not installed; run pip install tidegate[otel]\n"
    assert (popen.returncode, err) == (2, expected)


def test_without_the_extra_a_variable_stops_no_server(tmp_path: Path, root: Path) -> None:
    """It may be set for all programs of a machine: it is a warning."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317", "PYTHONPATH": hidden(tmp_path)}
    with python("serve", "--models", str(root), "--check", **variables) as popen:
        _, err = popen.communicate(timeout=TIMEOUT_S)
    assert popen.returncode == 0, err
    assert "no spans are sent: OpenTelemetry for grpc is not installed" in err


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("option", "variables", "wanted"),
    [
        ("", {}, False),
        ("http://a:4317", {}, True),
        ("", {ENDPOINT: "http://a:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a:4317"}, False),
        ("", {"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ("", {ENDPOINT: "http://a:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
        ("", {ENDPOINT: "http://a:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ("http://a:4317", {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_who_wants_spans(option: str, variables: dict[str, str], wanted: bool) -> None:
    """An option or a variable that says where, or that they are wanted; two variables turn them off."""
    assert (find_collector(option, variables) is not None) == wanted


@pytest.mark.parametrize(
    ("option", "variables", "words"),
    [
        ("localhost:4317", {}, "expected http://HOST:PORT"),
        ("http://", {}, "expected http://HOST:PORT"),
        ("http://a:99999", {}, "expected http://HOST:PORT"),
        ("", {"OTEL_TRACES_EXPORTER": "zipkin"}, "got 'zipkin', expected otlp or none"),
        ("http://a:1", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "expected grpc or http/protobuf"),
    ],
)
def test_what_cannot_be_sent_is_told(option: str, variables: dict[str, str], words: str) -> None:
    """With what is possible."""
    with pytest.raises(ValueError, match=words):
        find_collector(option, variables)
