"""Imported records with a right checksum and content that no server can have made."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.calls import RawCall, pack, raw_channel, read_ending
from tests.engines import BatcherSetup, key, load, run_batcher
from tests.graphs import FLOAT, build, describe, running_sum, write_model
from tests.servers import live, run_server
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.core.errors import InvalidField, NoStepLeft
from tidegate.core.import_check import check_import
from tidegate.core.slots import Slots
from tidegate.core.spec import STEP_MAX, Checkpoint, Key, Timestep
from tidegate.core.streams import Existence, OpenOptions, StreamTable, checkpoint_rows
from tidegate.store import decode, encode
from tidegate.v1 import tidegate_pb2 as pb

ANSWERS = 4


def row(steps: int = 3) -> tuple[Checkpoint, Slots]:
    """A record of the running sum after so many timesteps, and its slots."""
    bench = BatcherSetup(running_sum())
    lease = bench.begin("a")
    for _ in range(steps):
        assert bench.engine.run_one(lease.stream.slot, Timestep(0, pack(1))) is not None
    return checkpoint_rows([lease.stream])[0], bench.engine.slots


def patched(checkpoint: Checkpoint, offset: int, value: Any) -> Checkpoint:
    """A record with a number written over its payload, which has: since, total, trail (2), count, answers of both outputs."""
    data = value.tobytes()
    return replace(checkpoint, payload=checkpoint.payload[:offset] + data + checkpoint.payload[offset + len(data) :])


def test_a_row_of_ours_passes() -> None:
    """A new stream, a young one, and one with more timesteps than answers."""
    for steps in (0, 1, 3, 9):
        check_import(*row(steps))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: replace(one, step=STEP_MAX), "at step 9223372036854775806, expected 0 to"),
        (lambda one: replace(one, step=-1), "at step -1"),
        (lambda one: replace(one, step=1), "from step 1 on|from step"),
        (lambda one: replace(one, answers=0), "remembers 0 answers, expected 1 to 4096"),
        (lambda one: replace(one, answers=2**31), "remembers 2147483648 answers"),
        (lambda one: replace(one, answers=2), "its state has 108 bytes, expected"),
        (lambda one: replace(one, payload=b""), "its state has 0 bytes"),
        (lambda one: patched(one, 0, np.int64(0)), "from step 0 on, expected 1 to 4 at step 3"),
        (lambda one: patched(one, 0, np.int64(5)), "from step 5 on"),
        (lambda one: patched(one, 0, np.int64(-(2**63))), "from step -9223372036854775808 on"),
        (lambda one: patched(one, 8, np.float32(np.nan)), "state 'total' has a value that is not finite"),
        (lambda one: patched(one, 12, np.float32(np.inf)), "state 'trail' has a value that is not finite"),
        (lambda one: replace(one, key=Key("default", "")), "got 0 bytes, expected 1 to 256"),
        (lambda one: replace(one, key=Key("default", "a\nb")), "character 2 is U\\+000A"),
        (lambda one: replace(one, key=Key("default", "a" * 60_000)), "got 60000 bytes"),
    ],
)
def test_a_row_that_none_of_ours_can_be_is_refused(change: Callable[[Checkpoint], Checkpoint], words: str) -> None:
    """With the field and the error."""
    checkpoint, slots = row()
    changed = change(checkpoint)
    if changed.step == 1:  # remembered answers beyond its last timestep
        changed = patched(changed, 0, np.int64(3))
    with pytest.raises(InvalidField, match=rf"^checkpoint: .*({words})"):
        check_import(changed, slots)


def test_a_byte_that_is_no_truth_value_is_refused() -> None:
    """In a state of booleans, where a byte of 2 would be neither."""
    graph = build(
        [_node("Not", "flag", "flag_next"), _node("Identity", "x", "y")],
        [("x", FLOAT, ["batch", 1]), ("flag", 9, ["batch", 1])],
        [("y", FLOAT, ["batch", 1]), ("flag_next", 9, ["batch", 1])],
        {},
        describe(
            ["x"],
            [{"name": "y", "shape": ["batch", 1]}],
            [{"name": "flag", "next": "flag_next", "shape": ["batch", 1]}],
        ),
    )
    slots = Slots(load(graph).spec, 2, ANSWERS)
    lease = StreamTable().begin(key("a"), slots, slots.acquire(key("a")), 1)
    (checkpoint,) = checkpoint_rows([lease.stream])
    check_import(checkpoint, slots)
    with pytest.raises(InvalidField, match="state 'flag' has a byte 2, expected 0 or 1"):
        check_import(patched(checkpoint, 8, np.uint8(2)), slots)


def _node(kind: str, source: str, target: str) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, [source], [target])


@pytest.mark.parametrize("alone", [True, False])
async def test_a_stream_that_has_had_the_last_number_takes_no_other_timestep(alone: bool) -> None:
    """It gets an error. Its state and its neighbour's are unchanged, and duplicates are answered."""
    async with run_batcher(running_sum()) as bench:
        lease, other = bench.begin("a"), bench.begin("b")
        slots = bench.engine.slots
        slots.step[lease.stream.slot] = STEP_MAX - 1
        last = await bench.batcher.submit(lease, Timestep(0, pack(5)))
        assert last.step == STEP_MAX
        beside = [] if alone else [bench.batcher.submit(other, Timestep(0, pack(7)))]
        with pytest.raises(NoStepLeft, match="the last possible number; begin another stream"):
            await bench.batcher.submit(lease, Timestep(0, pack(6)))
        assert [(await answer).step for answer in beside] == [1] * len(beside)
        assert slots.step[lease.stream.slot] == STEP_MAX
        again = await bench.batcher.submit(lease, Timestep(STEP_MAX, pack(5)))
        assert (again.duplicate, again.outputs) == (True, last.outputs)


async def imported(channel: grpc.aio.Channel, record: bytes, stream_id: str) -> grpc.StatusCode:
    """The status of an import."""
    call = channel.unary_unary("/tidegate.v1.TidegateService/ImportStream")(
        pb.ImportStreamRequest(checkpoint=record, stream_id=stream_id).SerializeToString()
    )
    async with asyncio.timeout(TIMEOUT_S):
        ending = read_ending(await call.code(), await call.details(), await call.trailing_metadata())
    assert ending.code is grpc.StatusCode.OK or ending.fields == ("checkpoint",)
    return ending.code


@pytest.mark.parametrize("record", [b"", b"\xff" * 100, b"TGCK\xff\xff"])
async def test_garbage_is_an_invalid_argument(sum_root: Path, record: bytes) -> None:
    """The client is at fault: DATA_LOSS would blame the store."""
    async with run_server(sum_root) as server, raw_channel(server) as channel:
        assert await imported(channel, record, "b") is grpc.StatusCode.INVALID_ARGUMENT


numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**32 - 1, STEP_MAX - 2, STEP_MAX - 1, STEP_MAX])
changes = st.fixed_dictionaries(
    {},
    optional={
        "step": numbers,
        "answers": st.sampled_from([0, 1, 2, 3, 4, 32, 2**31, 2**32 - 1]),
        "stream_id": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    },
)
writes = st.lists(
    st.tuples(
        st.integers(0, 75),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([np.float32(np.nan), np.float32(-np.inf), np.int64(2**63 - 1), np.int64(-1)]).map(
                lambda value: value.tobytes()
            ),
        ),
    ),
    max_size=4,
)


def test_no_record_harms_the_server(tmp_path: Path) -> None:
    """After any record, opened and stepped twice, the server works, and the slot becomes free."""
    root = write_model(tmp_path, running_sum())

    async def one(changed: dict[str, Any], written: list[tuple[int, bytes]]) -> None:
        checkpoint, _ = row()
        payload = bytearray(checkpoint.payload)
        for offset, data in written:
            payload[offset : offset + len(data)] = data
        payload = payload[: len(checkpoint.payload)]
        stream_id = changed.pop("stream_id", "b")
        record = encode(replace(checkpoint, payload=bytes(payload), key=Key("default", stream_id), **changed))
        async with run_server(root, live_max=4, answers_remembered=ANSWERS) as server, raw_channel(server) as channel:
            if await imported(channel, record, "") is grpc.StatusCode.OK:
                call = RawCall(channel)
                assert (await call.open(stream_id, existence=pb.EXISTENCE_MUST_EXIST)).next_step == decode(
                    record, ""
                ).step + 1
                await call.step(1)
                await call.step(2)
                call.call.cancel()
                await eventually(lambda: live(server) == 0, "parking")
            call = RawCall(channel)
            await call.open("neighbour")
            assert (await call.step(1)).prediction.step == 1

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(changes, writes)
    def check(changed: dict[str, Any], written: list[tuple[int, bytes]]) -> None:
        asyncio.run(one(dict(changed), written))

    check()


async def test_a_record_at_its_last_number_is_not_planted(sum_root: Path) -> None:
    """A refused record is not stored, so it cannot do harm later."""
    async with run_server(sum_root, answers_remembered=ANSWERS) as server:
        checkpoint, _ = row()
        with pytest.raises(InvalidField):
            await server.admin_service.import_("default", encode(replace(checkpoint, step=STEP_MAX)), "b")
        lease = (await server.stream_service.open(key("b"), "", "", OpenOptions(Existence.MUST_BE_NEW))).lease
        assert lease.stream.step == 0
