"""A fake server with a toy model. It stalls and refuses on request, and it checks the step numbers.

`streams` has the applied timesteps of each stream.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from tests.client.reasons import error_of
from tests.timeouts import TIMEOUT_S
from tidegate.bench.__main__ import MAKE_RUNNERS
from tidegate.bench.counts import Counts
from tidegate.bench.load import LoadGenerator
from tidegate.bench.messages import Ready, Report, RunTimes, SecondsDone, Task
from tidegate.bench.plan import Plan
from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="f" * 64,
    features=[pb.Feature(name="x"), pb.Feature(name="y")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
)


class FakeServicer(pb_grpc.TidegateServiceServicer):
    """The server.

    Attributes:
        refuse: returns the reason to refuse a stream's timestep; None applies it.
        refuse_block: the same for a whole block, by its number.
        refuse_open: the same for the open of a stream.
        stalled: (from, to): the time in which it answers nothing.
        held: whether it answers nothing now.
        window: the number of remembered answers that it reports.
    """

    def __init__(self) -> None:
        self.streams: dict[str, list[tuple[float, ...]]] = {}
        self.deleted: list[str] = []
        self.blocks: list[pb.Block] = []
        self.wrong: list[str] = []
        self.refuse: Callable[[str, int], str | None] = lambda _stream, _step: None
        self.refuse_block: Callable[[int], str | None] = lambda _number: None
        self.refuse_open: Callable[[str], str | None] = lambda _stream: None
        self.stalled: tuple[float, float] = (0.0, 0.0)
        self.held: Callable[[], bool] = lambda: False
        self.retry_after_ms = 20
        self.window = 32
        self.address = ""
        self.stop: Callable[[], Awaitable[None]]

    async def Predict(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Serves one stream."""
        ask = (await context.read()).open
        assert ask.existence == pb.EXISTENCE_MUST_BE_NEW
        if self.refuse_open(ask.stream_id):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room for another stream")
        self.streams[ask.stream_id] = []
        opened = pb.Opened(stream_id=ask.stream_id, next_step=1, answers_remembered=self.window, model=MODEL)
        await context.write(pb.PredictResponse(opened=opened))
        while (request := await context.read()) is not grpc.aio.EOF:
            await self._stall()
            if request.HasField("close"):
                self._delete(ask.stream_id, forget=request.close.forget)
                await context.write(pb.PredictResponse(closed=pb.Closed()))
                return
            error = self._step(ask.stream_id, request.timestep.step, request.timestep.values)
            if error is None:
                prediction = pb.Prediction(step=request.timestep.step, outputs=[b"1234"])
                await context.write(pb.PredictResponse(prediction=prediction))
            else:
                await context.write(pb.PredictResponse(error=error))

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Serves blocks of streams."""
        names: dict[int, str] = {}
        while (request := await context.read()) is not grpc.aio.EOF:
            await self._stall()
            if request.HasField("open"):
                await context.write(pb.PredictBlocksResponse(opened=self._open(request.open, names)))
            elif request.HasField("close"):
                for handle in request.close.handles:
                    self._delete(names[handle], forget=request.close.forget)
                await context.write(pb.PredictBlocksResponse(closed=pb.ClosedStreams(steps=[0] * len(names))))
            else:
                # This client ignores durable steps.
                await context.write(pb.PredictBlocksResponse(durable=pb.DurableStreams()))
                await context.write(pb.PredictBlocksResponse(block=self._block(request.block, names)))

    def _open(self, ask: pb.OpenStreams, names: dict[int, str]) -> pb.OpenedStreams:
        assert ask.existence == pb.EXISTENCE_MUST_BE_NEW
        opened = pb.OpenedStreams(answers_remembered=self.window, model=MODEL)
        for row, name in enumerate(ask.stream_ids):
            reason = self.refuse_open(name)
            if reason:
                opened.errors.append(pb.RowError(row=row, error=self._error(reason)))
            else:
                self.streams[name] = []
                names[len(names) + 1] = name
            opened.stream_ids.append(name)
            opened.handles.append(0 if reason else len(names))
            opened.next_steps.append(0 if reason else 1)
        return opened

    def _block(self, block: pb.Block, names: dict[int, str]) -> pb.PredictedBlock:
        self.blocks.append(block)
        reason = self.refuse_block(block.block)
        if reason:
            return pb.PredictedBlock(block=block.block, refused=self._error(reason))
        handles, steps = np.frombuffer(block.handles, "<u4"), np.frombuffer(block.steps, "<u8")
        width = 4 * len(MODEL.features)
        assert len(handles) == len(steps) == len(block.values) // width
        answer = pb.PredictedBlock(block=block.block, steps=block.steps, outputs=[bytes(4 * len(handles))])
        for row, (handle, step) in enumerate(zip(handles.tolist(), steps.tolist(), strict=True)):
            error = self._step(names[handle], step, block.values[row * width : (row + 1) * width])
            if error is not None:
                answer.errors.append(pb.RowError(row=row, error=error))
        return answer

    def _step(self, stream: str, step: int, values: bytes) -> pb.Error | None:
        """Applies a timestep, or returns why not."""
        applied = self.streams[stream]
        if step <= len(applied):
            self.wrong.append(f"{stream}: {step} is a duplicate")
        if step > len(applied) + 1:
            return self._error("STEP_GAP", step)
        reason = self.refuse(stream, step)
        if reason:
            return self._error(reason, step)
        applied.append(tuple(np.frombuffer(values, "<f4").tolist()))
        return None

    def _error(self, reason: str, step: int = 0) -> pb.Error:
        return error_of(reason, step=step, retry_after_ms=self.retry_after_ms)

    def _delete(self, stream: str, *, forget: bool) -> None:
        assert forget
        self.deleted.append(stream)

    async def _stall(self) -> None:
        while self.held():  # noqa: ASYNC110 - a load generator sends no event
            await asyncio.sleep(0.005)
        begin, end = self.stalled
        if begin <= time.monotonic() < end:
            await asyncio.sleep(end - time.monotonic())


@asynccontextmanager
async def fake_server() -> AsyncIterator[FakeServicer]:
    """Runs a server. Fails when a client sent a duplicate."""
    servicer = FakeServicer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    servicer.stop = lambda: server.stop(None)
    await server.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield servicer
    finally:
        await servicer.stop()
    assert not servicer.wrong, servicer.wrong


class Bench:
    """A client process, run inside this process."""

    def __init__(self, server: FakeServicer, values: Any = None, **settings: Any) -> None:
        settings = {"streams": 4, "processes": 1, "connections": 1, "warmup": 0.0, "seconds": 0.5, **settings}
        self.plan = Plan(address=server.address, **settings)
        rows = np.arange(64, dtype=np.float32).reshape(32, 2) if values is None else values
        self.progress: list[SecondsDone] = []
        self.load = LoadGenerator(
            Task(self.plan, 0, self.plan.calls_by_process[0], "bench-test-", rows),
            self.progress.append,
            MAKE_RUNNERS[self.plan.client],
        )
        self.go: RunTimes
        self.ready: Ready
        self.report: Report

    @property
    def counts(self) -> Counts:
        """What was measured."""
        return self.report.counts

    async def run(self, before: Callable[[RunTimes], None] = lambda _: None, *, loses: bool = False) -> "Bench":
        """Runs the load. `before` is called when the load begins. No stream is lost unless `loses` is set."""
        try:
            self.ready = await self.load.open()
            start = time.monotonic() + 0.02
            begin = start + self.plan.warmup
            self.go = RunTimes(start, begin, begin + self.plan.seconds)
            before(self.go)
            self.report = await self.load.run(self.go)
        finally:
            await self.load.close()
        assert bool(self.counts.lost) is loses, (self.counts.lost, self.report.first_error)
        return self
