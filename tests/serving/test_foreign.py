"""Graphs of others: each is served bit for bit as a plain loop of onnxruntime runs it."""

from typing import Any

import numpy as np
import pytest

from tests.engines import key
from tests.foreign_graphs import FOREIGN, Foreign, plain_loop
from tidegate.core.engine import Engine
from tidegate.core.input_layout import InputLayout
from tidegate.core.model import Model
from tidegate.core.self_check import check_model
from tidegate.core.slots import Slots
from tidegate.core.spec import Timestep

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
