"""A server of `PredictBlocks` with many streams that follows a script, as `tests.scripted` does with one stream.

What it applied is in `histories`, by the stream's name: its answer to a timestep is the sum of all values up to it, and their
count. What it stored is in `stored`; `crash` loses the rest. A value below 0 is refused as NOT_FINITE.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np

from tests import scripted
from tests.client.reasons import error_of
from tests.scripted import Scripted, Time
from tests.scripted_calls import BlocksCall
from tidegate.client import Block, Client
from tidegate.v1 import tidegate_pb2 as pb

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="f" * 64,
    features=[pb.Feature(name="x")],
    outputs=[
        pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1]),
        pb.Output(name="count", data_type=pb.DATA_TYPE_INT64, shape=[]),
    ],
    batch_invariant=True,
)
REMEMBERED = 32
NAMES = ["a", "b", "c"]

# Stream, number, value.
Row = tuple[str, int, float]
Reasons = Mapping[int, str | pb.Error]


class BlockCall(BlocksCall):
    """One call, as a script plays it."""

    server: "ScriptedBlocks"

    def __init__(self, server: "ScriptedBlocks", context: Any) -> None:
        super().__init__(server, context)
        self.opens: list[pb.OpenStreams] = []
        self.names: list[str] = []  # by handle, from 1
        self.remembered = REMEMBERED
        self.number = 0  # of the block read last
        self.rows: list[Row] = []

    async def next(self, kind: str) -> Any:
        """Reads a request, which must be of this kind."""
        request = await self.read()
        assert request is not None, f"the call ended, expected {kind}"
        assert request.HasField(kind), f"{request}, expected {kind}"
        return getattr(request, kind)

    async def read_streams(self) -> pb.OpenStreams:
        """Reads an open and does not answer."""
        self.opens.append(await self.next("open"))
        return self.opens[-1]

    async def open_streams(self, refused: Mapping[str, str | pb.Error] | None = None, **more: Any) -> None:
        """Reads an open and answers it; streams go on after what was applied."""
        await self.answer_open(await self.read_streams(), refused or {}, **more)

    async def answer_open(self, ask: pb.OpenStreams, refused: Mapping[str, str | pb.Error], **more: Any) -> None:
        """Answers an open."""
        server, opened = self.server, pb.OpenedStreams(answers_remembered=self.remembered, model=MODEL)
        resumed = ask.resume_from or [0] * len(ask.stream_ids)
        for row, (asked, resume_from) in enumerate(zip(ask.stream_ids, resumed, strict=True)):
            name = asked or f"made-{len(server.histories)}"
            reason = refused.get(name)
            if reason is None and name not in server.histories and ask.existence == pb.EXISTENCE_MUST_EXIST:
                reason = "STREAM_NOT_FOUND"
            if reason is None and resume_from and server.owners.get(name, ask.owner) != ask.owner:
                reason = "TAKEN_OVER"
            if reason is None and resume_from > len(server.histories.get(name, [])) + 1:
                reason = "STATE_LOST"
            known = name in server.histories
            opened.stream_ids.append(name)
            opened.kinds.append(pb.Opened.KIND_RESUMED if known else pb.Opened.KIND_NEW)
            if reason is not None:
                opened.errors.add(row=row, error=error_of(reason))
                opened.handles.append(0)
            else:
                server.histories.setdefault(name, [])
                server.owners[name] = ask.owner
                server.epochs[name] = server.epochs.get(name, 0) + 1
                self.names.append(name)
                opened.handles.append(len(self.names))
            opened.next_steps.append(len(server.histories.get(name, [])) + 1)
            opened.epochs.append(server.epochs.get(name, 0))
            opened.durable_steps.append(server.stored.get(name, 0))
        for field, value in more.items():
            opened.ClearField(field)
            opened.MergeFrom(pb.OpenedStreams(**{field: value}))
        await self.write(opened=opened)

    async def read_block(self) -> list[Row]:
        """Reads a block and does not apply it."""
        self.take_block(await self.next("block"))
        return self.rows

    def take_block(self, block: pb.Block) -> None:
        """The block read last."""
        self.number = block.block
        handles = np.frombuffer(block.handles, "<u4").tolist()
        steps = np.frombuffer(block.steps, "<u8").tolist()
        values = np.frombuffer(block.values, "<f4").tolist()
        self.rows = [
            (self.names[handle - 1], step, value) for handle, step, value in zip(handles, steps, values, strict=True)
        ]

    def apply(self, reasons: Reasons | None = None) -> dict[int, pb.Error]:
        """Applies the block read last, but for the rows that `reasons` refuses; gives all that are refused."""
        errors: dict[int, pb.Error] = {}
        for row, (name, step, value) in enumerate(self.rows):
            history = self.server.histories[name]
            if step > len(history) + 1:
                reason: str | pb.Error = "STEP_GAP"
            elif reasons and row in reasons:
                reason = reasons[row]
            elif step == len(history) + 1 and value < 0:
                reason = "NOT_FINITE"
            else:
                if step == len(history) + 1:
                    history.append(value)
                continue
            errors[row] = error_of(reason, step=step, next_step=len(history) + 1)
        return errors

    async def answer_block(self, errors: Mapping[int, pb.Error] | None = None, bits: float = 0.0) -> None:
        """Answers the block read last."""
        server, errors = self.server, errors or {}
        sums, counts, durable = [], [], []
        forgotten = []
        for row, (name, step, _) in enumerate(self.rows):
            durable.append(server.stored.get(name, 0))
            gone = step <= len(server.histories[name]) - self.remembered
            if gone:
                forgotten.append(row)
            answered = row not in errors and not gone
            sums.append(sum(server.histories[name][:step]) + bits if answered else 0.0)
            counts.append(step if answered else 0)
        await self.write(
            block=pb.PredictedBlock(
                block=self.number,
                steps=np.array([step for _, step, _ in self.rows], "<u8").tobytes(),
                outputs=[np.array(sums, "<f4").tobytes(), np.array(counts, "<i8").tobytes()],
                durable_steps=np.array(durable, "<u8").tobytes(),
                forgotten_rows=forgotten,
                errors=[pb.RowError(row=row, error=error) for row, error in errors.items()],
            )
        )

    async def serve_block(self, reasons: Reasons | None = None) -> list[Row]:
        """Reads, applies and answers a block; gives its rows."""
        await self.read_block()
        await self.answer_block(self.apply(reasons))
        return self.rows

    async def refuse_block(self, reason: str, retry_after_ms: int = 0) -> None:
        """Refuses the block read last as a whole."""
        error = error_of(reason, retry_after_ms=retry_after_ms)
        await self.write(block=pb.PredictedBlock(block=self.number, refused=error))

    async def tell_durable(self, **steps: int) -> None:
        """Tells what is stored."""
        self.server.stored.update(steps)
        handles = [self.names.index(name) + 1 for name in steps]
        durable = pb.DurableStreams(
            handles=np.array(handles, "<u4").tobytes(), durable_steps=np.array(list(steps.values()), "<u8").tobytes()
        )
        await self.write(durable=durable)

    async def end_streams(self, reason: str, *names: str) -> None:
        """Tells that streams no longer belong to the call."""
        handles = [self.names.index(name) + 1 for name in names]
        await self.write(ended=pb.EndedStreams(handles=handles, error=error_of(reason)))

    async def close_streams(
        self, refused: Mapping[str, str] | None = None, *, store: bool = True, forget: bool = False
    ) -> list[str]:
        """Reads a close and answers it; gives the streams that it was for."""
        message = await self.next("close")
        assert message.forget is forget
        names = [self.names[handle - 1] for handle in message.handles]
        closed = pb.ClosedStreams()
        for row, name in enumerate(names):
            if name in (refused or {}):
                closed.errors.add(row=row, error=error_of((refused or {})[name]))
            elif store:
                self.server.stored[name] = len(self.server.histories[name])
            closed.steps.append(len(self.server.histories[name]))
            closed.durable_steps.append(self.server.stored.get(name, 0))
        await self.write(closed=closed)
        return names


BlockScript = Callable[[BlockCall], Awaitable[Any]]


class ScriptedBlocks(Scripted):
    """The server."""

    def __init__(self, scripts: Sequence[Any]) -> None:
        super().__init__(scripts)
        self.histories: dict[str, list[float]] = {}
        self.stored: dict[str, int] = {}
        self.epochs: dict[str, int] = {}
        self.owners: dict[str, str] = {}  # the last

    async def PredictBlocks(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Plays the next script."""
        await self.play(BlockCall(self, context))

    def lose_unstored(self) -> None:
        """A crash: all that was not stored is gone, streams that never were too."""
        for name in list(self.histories):
            del self.histories[name][self.stored.get(name, 0) :]
            if not self.histories[name]:
                del self.histories[name]


def connected(
    *scripts: BlockScript, **settings: Any
) -> AbstractAsyncContextManager[tuple[Client, ScriptedBlocks, Time]]:
    """A server that plays these scripts, a client of it, and the client's time."""
    return scripted.connected(*scripts, make=ScriptedBlocks, **settings)


async def closing(call: BlockCall) -> None:
    """The rest of many scripts: the client closes, everything is stored."""
    await call.close_streams()


async def opened_and_closed(call: BlockCall) -> None:
    """Opens, has nothing to do, is closed."""
    await call.open_streams()
    await closing(call)


def column(*values: float) -> list[list[float]]:
    """Timesteps of one feature."""
    return [[value] for value in values]


async def sums(block: Block, values: Sequence[float], rows: Sequence[int] | None = None) -> list[float]:
    """Sends timesteps; gives the sums that were answered, none of which may be an error."""
    answer = await block.step(column(*values), rows)
    assert not answer.errors
    return answer["sum"].ravel().tolist()
