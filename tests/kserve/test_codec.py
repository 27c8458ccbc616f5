"""Answers are written as bytes: they are those of protobuf messages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.calls import pack
from tests.engines import load
from tests.graphs import running_sum
from tests.kserve.calls import parameters_of
from tidegate.core.spec import Output, Prediction, Spec
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.codec import RESUMED, ModelCodec, encode_parameter

STREAM = encode_parameter("stream_id", string_param="pump")


@pytest.fixture(scope="module")
def spec() -> Spec:
    """The running sum, with the outputs `sum` (float32) and `steps` (int64)."""
    return load(running_sum()).spec


def encode(spec: Spec, prediction: Prediction, request_id: str = "", durable_step: int = 0, **more: Any) -> Any:
    """The message of an answer that has all outputs."""
    codec = ModelCodec(spec)
    selection = codec.select(messages.ModelInferRequest())
    data = codec.encode(request_id, prediction, selection, stream=STREAM, durable_step=durable_step, **more)
    return messages.ModelInferResponse.FromString(data)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**28, 2**56 - 1, 2**56, 2**63 - 2])
def test_numbers_of_any_size(spec: Spec, number: int) -> None:
    """In the parameters `step` and `durable_step`."""
    answer = encode(spec, Prediction(number, ()), durable_step=number)
    assert parameters_of(answer) == {"stream_id": "pump", "step": number, "durable_step": number}


def test_every_field_is_that_of_a_message(spec: Spec) -> None:
    """The same message as protobuf makes."""
    raw = (pack(1.5), (3).to_bytes(8, "little"))
    expected = messages.ModelInferResponse(model_name="toy", model_version="1", id="ä" * 100, raw_output_contents=raw)
    expected.outputs.add(name="sum", datatype="FP32", shape=[1, 1])
    expected.outputs.add(name="steps", datatype="INT64", shape=[1])
    expected.parameters["stream_id"].string_param = "pump"
    expected.parameters["step"].int64_param = 3
    expected.parameters["durable_step"].int64_param = 2
    expected.parameters["duplicate"].bool_param = True
    expected.parameters["resumed"].bool_param = True
    prediction = Prediction(3, raw, duplicate=True)
    assert encode(spec, prediction, "ä" * 100, durable_step=2, notes=RESUMED) == expected


def test_a_forgotten_answer_has_no_outputs(spec: Spec) -> None:
    """Neither described nor as values."""
    answer = encode(spec, Prediction(3, (), duplicate=True))
    assert parameters_of(answer)["duplicate"] is True
    assert not answer.outputs
    assert not answer.raw_output_contents


@pytest.mark.parametrize(
    ("dtype", "shape", "travels"),
    [(np.float32, (), True), (np.float64, (1,), True), (np.float32, (2,), False), (np.int64, (), False)],
)
def test_a_score_of_one_number_is_a_parameter(spec: Spec, dtype: Any, shape: tuple[int, ...], travels: bool) -> None:
    """And an output as before."""
    scored = replace(spec, outputs=(spec.outputs[1], Output("score", np.dtype(dtype), shape)))
    values = np.full(shape, 0.5, dtype).tobytes()
    answer = encode(scored, Prediction(1, (bytes(8), values)))
    assert answer.raw_output_contents[1] == values
    assert parameters_of(answer).get("score") == (0.5 if travels else None)
