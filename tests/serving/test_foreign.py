"""Graphs of others: each is served bit for bit as a plain loop of onnxruntime runs it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import key
from tests.foreign_graphs import FOREIGN, Foreign, plain_loop
from tests.graphs import write_model
from tests.servers import address_of, run_server
from tidegate.client import Client
from tidegate.core.engine import Engine
from tidegate.core.import_check import check_import
from tidegate.core.input_layout import InputLayout
from tidegate.core.model import Model
from tidegate.core.self_check import check_model
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint, Timestep

STREAMS, STEPS = 5, 7


class Streams:
    """Streams of one foreign graph with random values, in an engine, and what a plain loop makes of them."""

    def __init__(self, foreign: Foreign) -> None:
        model = Model("foreign", "1", foreign.graph, foreign.toml or None)
        check = check_model(model, STREAMS, lambda: 0.0)
        assert check.batch_invariant
        model.limit_batches(check.sizes, STREAMS)
        self.engine = Engine(model, Slots(model.spec, STREAMS, 2))
        layout = InputLayout(model.spec.inputs)
        rng = np.random.default_rng(0)
        self.expected = []
        rows = []
        self.slots = np.arange(STREAMS)
        for number in range(STREAMS):
            given = {name: _values(rng, (STEPS, *shape), dtype) for name, (shape, dtype) in foreign.given.items()}
            if foreign.window > 1:
                (name,) = given
                given = {name: _values(rng, (STEPS, 2), np.float32)}
            stream = {name: _values(rng, shape, dtype) for name, (shape, dtype) in foreign.stream.items()}
            self.expected.append(plain_loop(foreign, given, stream))
            rows.append(layout.pack({name: values.tobytes() for name, values in given.items()}, STEPS))
            slot = self.engine.slots.acquire(key(f"s{number}"))
            self.engine.slots.set_stream_inputs(slot, [stream[part.name].tobytes() for part in layout.stream])
        self.x = np.stack(rows)  # (streams, steps, row)

    def answer(self, outputs: Any, row: int) -> list[bytes]:
        """The outputs of one row of a batch, as bytes."""
        return [part[row].tobytes() for part in outputs]


def _values(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    values = rng.normal(0.0, 3.0, shape)
    if np.dtype(dtype).kind in "bu":
        values = np.abs(values)
    return (values > 1 if dtype == np.bool_ else values).astype(dtype)


@pytest.fixture(params=list(FOREIGN))
def streams(request: pytest.FixtureRequest) -> Streams:
    """Each of the graphs."""
    return Streams(FOREIGN[request.param]())


def test_a_single_timestep_has_the_bits_of_a_plain_loop(streams: Streams) -> None:
    """On the short path, and where that leaves it to the other one."""
    for stream, slot in enumerate(streams.slots.tolist()):
        for step in range(STEPS):
            values = streams.x[stream, step].tobytes()
            prediction = streams.engine.run_one(slot, Timestep(step + 1, values))
            assert prediction is not None
            assert list(prediction.outputs) == streams.expected[stream][step]


def test_a_batch_has_the_bits_of_a_plain_loop(streams: Streams) -> None:
    """Batches of one size, which use the same memory again from the second on."""
    for step in range(STEPS):
        result = streams.engine.run(streams.slots, np.full(STREAMS, step + 1), streams.x[:, step])
        assert result.statuses is None
        for stream in range(STREAMS):
            assert streams.answer(result.outputs, stream) == streams.expected[stream][step]


def test_batches_of_changing_sizes_have_the_bits_of_a_plain_loop(streams: Streams) -> None:
    """Streams that come and go: no batch has the size of the one before, so no memory is used again."""
    done = np.zeros(STREAMS, np.int64)
    for turn in range(2 * STEPS):
        chosen = np.flatnonzero(done < STEPS)[turn % 2 :][: STREAMS - turn % 3]
        if not chosen.size:
            continue
        x = streams.x[chosen, done[chosen]]
        result = streams.engine.run(streams.slots[chosen], done[chosen] + 1, x)
        assert result.statuses is None
        for row, stream in enumerate(chosen.tolist()):
            assert streams.answer(result.outputs, row) == streams.expected[stream][done[stream]]
        done[chosen] += 1


def test_a_record_of_a_stream_can_be_imported(streams: Streams) -> None:
    """Also where its state may be infinite, as the description says."""
    for slot in streams.slots.tolist():
        assert streams.engine.run_one(slot, Timestep(1, streams.x[slot, 0].tobytes())) is not None
        payload = streams.engine.slots.pack(streams.slots[slot : slot + 1]).tobytes()
        check_import(Checkpoint(key("a"), 1, 1, streams.engine.model.spec.id, 2, payload), streams.engine.slots)


def test_a_stream_goes_on_from_its_checkpoint(streams: Streams) -> None:
    """What is stored of a stream is all that the graph needs: state, window and the stream's own inputs."""
    for step in range(STEPS):
        if step == STEPS // 2:
            packed = streams.engine.slots.pack(streams.slots)
            for slot in streams.slots.tolist():
                for slab in streams.engine.slots.state:
                    slab[slot] = 0
                streams.engine.slots.unpack(slot, step, 2, packed[slot].tobytes())
        result = streams.engine.run(streams.slots, np.full(STREAMS, step + 1), streams.x[:, step])
        for stream in range(STREAMS):
            assert streams.answer(result.outputs, stream) == streams.expected[stream][step]


SERVED = ["time first", "batch of one", "open dimensions", "constants", "scalar state", "running max", "window"]
SERVED += ["window, time last", "output that is state", "darts, recurrent", "darts, window"]


@pytest.mark.parametrize("name", SERVED)
async def test_a_server_gives_the_bits_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    """One stream in a call of its own, many in blocks, and each stream again after a restart."""
    foreign = FOREIGN[name]()
    streams = Streams(foreign)
    root = write_model(tmp_path / "models", foreign.graph, sidecar=foreign.toml or None)
    half = STEPS // 2
    for steps in (range(half), range(half, STEPS)):
        async with (
            run_server(root, state=f"sqlite:///{tmp_path}/state.db") as server,
            Client(address_of(server)) as client,
        ):
            async with client.open("alone") as stream:
                for step in steps:
                    got = await stream.step(streams.x[0, step])
                    assert [got[output].tobytes() for output in foreign.outputs] == streams.expected[0][step]
            async with client.block([f"s{number}" for number in range(STREAMS)]) as block:
                for step in steps:
                    answer = await block.step(streams.x[:, step])
                    assert not answer.errors
                    for number in range(STREAMS):
                        got_row = [answer[output][number].tobytes() for output in foreign.outputs]
                        assert got_row == streams.expected[number][step]
