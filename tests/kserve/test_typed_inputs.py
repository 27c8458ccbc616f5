"""Models with inputs of any type and rank, several inputs, and inputs that a sequence begins with."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.calls import raw_channel
from tests.graphs import write_model
from tests.kserve.calls import StreamInfer, ask, parameters_of, raw_outputs, refusal
from tests.servers import live, run_server
from tests.timeouts import eventually
from tests.typed_graphs import replay, scaled_sum, toys
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.tensors import DATA_TYPES

TOYS = toys()


def request(row: Any, *, start: bool = False, raw: bool = True) -> Any:
    """A request of sequence 7 with these inputs, arrays by name. They are sent in the reverse order of the model's."""
    made = messages.ModelInferRequest(model_name="toy")
    made.parameters["sequence_id"].int64_param = 7
    made.parameters["sequence_start"].bool_param = start
    for name, array in reversed(row.items()):
        kind = DATA_TYPES[array.dtype]
        shape = [1, *(array.shape or (1,))]
        tensor = made.inputs.add(name=name, datatype=kind.name, shape=shape)
        if raw:
            made.raw_input_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, kind.contents).extend(array.reshape(-1).tolist())
    return made


@pytest.mark.parametrize(
    ("name", "raw"),
    # The protocol has no typed contents for float16.
    [(name, True) for name in TOYS] + [(name, False) for name in TOYS if name != "float16"],
)
async def test_the_bits_are_those_of_a_plain_loop(tmp_path: Path, name: str, raw: bool) -> None:
    """Raw or typed contents; half of the steps over a stream, half in unary calls, which leave the stream's inputs out."""
    toy = TOYS[name]
    expected = [answer.tobytes() for answer in replay(toy)]
    got = []
    async with run_server(write_model(tmp_path, toy.graph)) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        for number, row in enumerate(toy.rows):
            given = {**row, **toy.stream} if number < 2 else row
            made = request(given, start=number == 0, raw=raw)
            answer = await (call.ask(made) if number < 3 else ask(channel, "ModelInfer", made))
            got.append(raw_outputs(answer)["sum"])
    assert got == expected


async def test_all_inputs_are_described(tmp_path: Path) -> None:
    """Those of a stream are optional: only a start must have them."""
    graph = scaled_sum(np.float16, per="stream", x=np.int64)
    async with run_server(write_model(tmp_path, graph)) as server, raw_channel(server) as channel:
        metadata = await ask(channel, "ModelMetadata", name="toy")
        config = (await ask(channel, "ModelConfig", name="toy")).config
    inputs = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
    assert inputs == [("x", "INT64", [-1, 2]), ("scale", "FP16", [-1, 1])]
    assert [(tensor.name, tensor.data_type, tensor.optional) for tensor in config.input] == [
        ("x", 9, False),
        ("scale", 10, True),
    ]


async def test_the_inputs_of_a_sequence_do_not_change(tmp_path: Path) -> None:
    """A start without them is refused and leaves the old stream; later other values are refused, also after a resume."""
    toy = TOYS["per stream"]
    x, other = toy.rows[0], {"scale": np.array([9.0], np.float32)}
    async with run_server(write_model(tmp_path, toy.graph)) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        await call.ask(request({**x, **toy.stream}, start=True))
        refused = await call.refused(request(x, start=True))
        assert refused.error_message == "inputs: got 'x', expected 'x', 'scale', each once"
        changed = await call.refused(request({**x, **other}))
        assert changed.error_message.startswith("inputs: ")
        call.call.cancel()
        await eventually(lambda: live(server) == 0, "parking")
        call = StreamInfer(channel)
        assert (await call.refused(request({**x, **other}))).error_message == changed.error_message
        answer = await call.ask(request({**x, **toy.stream}))
        assert parameters_of(answer)["step"] == 2
        refusal_ = await refusal(ask(channel, "ModelInfer", request({**x, **other})))
        assert (refusal_.code, refusal_.message) == (grpc.StatusCode.INVALID_ARGUMENT, changed.error_message)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"x": np.ones(2, np.float32)}, "inputs: got 'x', expected 'x', 'scale', each once"),
        (
            {"x": np.ones(2, np.float32), "scale": np.ones(1, np.int64), "y": np.ones(1, np.int64)},
            "inputs: got 'y', 'scale', 'x', expected 'x', 'scale', each once",
        ),
        ({"x": np.ones(2, np.float32), "scale": np.ones(1, np.int32)}, "'scale' has datatype 'INT32', expected INT64"),
        ({"x": np.ones(2, np.float32), "scale": np.ones(2, np.int64)}, "'scale' has shape [1, 2], expected [1, 1]"),
    ],
)
async def test_wrong_inputs_are_named(tmp_path: Path, row: Any, words: str) -> None:
    """With what was got and what was expected."""
    graph = scaled_sum(np.int64)
    async with run_server(write_model(tmp_path, graph)) as server, raw_channel(server) as channel:
        refused = await StreamInfer(channel).refused(request(row, start=True))
        assert words in refused.error_message


async def test_typed_integers_must_fit(tmp_path: Path) -> None:
    """A small type travels in a larger field."""
    graph = scaled_sum(np.uint8)
    async with run_server(write_model(tmp_path, graph)) as server, raw_channel(server) as channel:
        made = request({"x": np.ones(2, np.float32), "scale": np.ones(1, np.uint8)}, start=True, raw=False)
        made.inputs[0].contents.uint_contents[0] = 256
        refused = await StreamInfer(channel).refused(made)
        assert "'scale' has numbers out of range, expected numbers that UINT8 can hold" in refused.error_message
