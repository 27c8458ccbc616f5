"""The bytes of blocks with one row, compared with what protobuf reads, and who may answer them on the short way."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import RawBlocks, block_request, raw_channel
from tests.engines import Gate
from tests.servers import batcher_of, run_server
from tidegate.core.handle_table import HandleTable
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import STEP_MAX, Input
from tidegate.rpc.predict_blocks import PredictBlocksCall
from tidegate.rpc.single_row import read_single_row
from tidegate.v1 import tidegate_pb2 as pb

NUMBERS = st.sampled_from([edge + off for bits in range(0, 63, 7) for edge in [1 << bits] for off in (-1, 0, 1)])
# One byte for the length of the values, two bytes for it, two for that of the message only, three.
FEATURES = st.sampled_from([1, 8, 25, 26, 31, 32, 64, 5000])


def request(number: int, handle: int, step: int | None, values: bytes, **more: Any) -> bytes:
    """A block of one row as protobuf encodes it."""
    steps = b"" if step is None else step.to_bytes(8, "little")
    block = pb.Block(block=number, handles=handle.to_bytes(4, "little"), steps=steps, values=values, **more)
    return pb.PredictBlocksRequest(block=block).SerializeToString()


class AnyTable:
    """Has a stream for each handle, with a number of features, and which expects a number."""

    def __init__(self, features: int, step: int) -> None:
        layout = InputLayout([Input("x", np.dtype(np.float32), (features,))])
        self._stream = SimpleNamespace(needs_wake=False, step=step - 1, slots=SimpleNamespace(layout=layout))

    def __getitem__(self, handle: int) -> Any:
        return SimpleNamespace(ended=None, stream=self._stream, handle=handle)


def read(message: bytes, features: int, step: int) -> tuple[int, int, int, bytes] | None:
    """What is read from a message, where a stream expects that number."""
    row = read_single_row(message, cast(HandleTable, AnyTable(features, step)))
    return None if row is None else (row.number, row.lease.handle, row.timestep.step, row.timestep.values)


def as_protobuf_reads(message: bytes) -> tuple[int, int, int, bytes] | None:
    """The same by protobuf; None when it cannot be decoded, and when it is no block of one row without named inputs."""
    try:
        block = pb.PredictBlocksRequest.FromString(message).block
    except DecodeError:
        return None
    if len(block.handles) != 4 or block.inputs:
        return None
    handle, step = (int.from_bytes(part, "little") for part in (block.handles, block.steps))
    return block.block, handle, step, block.values


@given(NUMBERS, st.integers(1, 2**32 - 1), st.integers(1, STEP_MAX), FEATURES)
def test_a_row_is_read_as_protobuf_reads_it(number: int, handle: int, step: int, features: int) -> None:
    """Blocks up to number 268 million, and values up to 16 KB, without its help."""
    values = np.arange(features, dtype="<f4").tobytes()
    wanted = (number, handle, step, values) if number < 2**28 and len(values) < 2**14 - 40 else None
    assert read(request(number, handle, step, values), features, step) == wanted


def test_a_row_without_a_number_is_read() -> None:
    """The server assigns it."""
    assert read(request(7, 3, None, bytes(8)), 2, 5) == (7, 3, 0, bytes(8))


@given(st.integers(0, 2**30), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 255)), max_size=4))
def test_what_was_not_written_by_protobuf_is_not_read_otherwise(number: int, changes: list[tuple[int, int]]) -> None:
    """For any bytes: a row that is decoded without protobuf is the one that protobuf decodes."""
    message = bytearray(request(number, 2, 9, bytes(8)))
    for place, byte in changes:
        message[place % len(message)] = byte
    known = as_protobuf_reads(bytes(message))
    found = read(bytes(message), 2, known[2] if known else 9)
    assert found is None or found == known


@pytest.mark.parametrize(
    "message",
    [
        b"",
        request(1, 2, 9, bytes(12)),
        request(1, 2, 10, bytes(8)),
        request(1, 2, STEP_MAX + 1, bytes(8)),
        request(1, 2, 9, bytes(8)) + request(2, 2, 10, bytes(8)),
        request(1, 2, 9, bytes(8), inputs=[pb.InputValues(name="x", values=bytes(8))]),
        block_request([2, 3], np.zeros((2, 2)), [9, 9]).SerializeToString(),
        pb.PredictBlocksRequest(close=pb.CloseStreams(handles=[2])).SerializeToString(),
    ],
)
def test_any_other_request_is_left_to_protobuf(message: bytes) -> None:
    """Other widths, numbers, rows and kinds."""
    assert read(message, 2, 9) is None


async def test_a_row_is_answered_before_its_stream_is_closed_in_the_background(
    sum_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that came before the row, and goes on while the row runs, waits for its answer."""
    stored = asyncio.Event()
    wait_durable = PredictBlocksCall._wait_durable

    async def wait(call: PredictBlocksCall, handle: int) -> None:
        await stored.wait()
        await wait_durable(call, handle)

    monkeypatch.setattr(PredictBlocksCall, "_wait_durable", wait)
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        call = RawBlocks(channel)
        handles = list((await call.open("a")).handles)
        gate = Gate(batcher_of(server))
        await call.send(pb.PredictBlocksRequest(close=pb.CloseStreams(handles=handles, independent=True)))
        await call.send(block_request(handles, [[2]]))
        await gate.entered()
        stored.set()
        for _ in range(50):
            await asyncio.sleep(0)  # the close has had its turns
        gate.open()
        assert np.frombuffer((await call.read()).block.outputs[0], "<f4").tolist() == [2]
        assert (await call.read()).WhichOneof("kind") == "closed"
