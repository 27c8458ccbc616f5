"""`tidegate inspect` guesses what the authors of a graph would say of it."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.foreign import exported
from tests.foreign.exported import FLOAT, INT64, build, lstm_weights, normal
from tests.foreign.graphs import SLOW_IF_PUBLISHED, Foreign
from tidegate.core.findings import Findings, apply_findings
from tidegate.core.guess import Guess, guess_description
from tidegate.core.onnx_file import OnnxFile, read_onnx


def read(model: onnx.ModelProto) -> OnnxFile:
    """The file of a model."""
    return read_onnx(model.SerializeToString())


def guess(model: onnx.ModelProto, **answers: float) -> Guess:
    """The guess for a model."""
    return guess_description(read(model), answers)


def pairs(found: Guess) -> dict[str, str]:
    """Each state, and what replaces it."""
    return {state.name: state.next for state in found.state}


@pytest.mark.parametrize("foreign", SLOW_IF_PUBLISHED)
def test_the_guess_is_what_the_authors_say(tmp_path: Path, packages_cache: Path, foreign: Foreign) -> None:
    """State pairs, x, constants, other inputs, predictions and windows of every graph, which authors know from their code."""
    found = guess_description(read_onnx(foreign.write(tmp_path, packages_cache).read_bytes()))
    x, *others = found.inputs
    assert x.name == foreign.x[0]
    assert pairs(found) == dict(foreign.pairs)
    assert {part.name: part.value for part in others if part.kind == "constant"} == foreign.constants
    assert {part.name for part in others if part.kind == "timestep"} == foreign.per_timestep.keys()
    assert {part.name for part in others if part.kind == "stream"} == foreign.per_stream.keys()
    assert set(foreign.outputs) <= {output.name for output in found.outputs}
    assert found.window == (foreign.window if foreign.window > 1 else None)
    assert tuple(1 if size == "batch" else size for size in x.dims) == foreign.x[1]
    assert found.batched == foreign.batched
    assert not found.questions
    # Where state is carried, an LSTM that begins anew is one for a call without state, or runs over frequencies.
    assert not foreign.pairs or not [remark for remark in found.remarks if "start from the same values" in remark]


def test_the_operator_tells_h_from_c() -> None:
    """Names that say nothing, and shapes that are the same: the LSTM that they start and end tells them apart."""
    nodes = [
        helper.make_node("LSTM", ["a", "W", "R", "B", "", "b", "d"], ["", "q", "p"], hidden_size=4),
        helper.make_node("MatMul", ["q", "head"], ["r"]),
    ]
    state = [1, "batch", 4]
    model = build(
        nodes,
        [("a", FLOAT, [1, "batch", 3]), ("d", FLOAT, state), ("b", FLOAT, state)],
        [("r", FLOAT, [1, "batch", 2]), ("q", FLOAT, state), ("p", FLOAT, state)],
        lstm_weights(3, 4),
    )
    assert pairs(guess(model)) == {"b": "q", "d": "p"}


def test_a_cell_of_single_operators_tells_h_from_c() -> None:
    """An unrolled LSTM, as Keras writes it: c passes number by number, h through a matrix."""
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["driven"]),
        helper.make_node("MatMul", ["h", "again"], ["recalled"]),
        helper.make_node("Add", ["driven", "recalled"], ["gates"]),
        helper.make_node("Sigmoid", ["gates"], ["gate"]),
        helper.make_node("Mul", ["gate", "c"], ["kept"]),
        helper.make_node("Add", ["kept", "gates"], ["second"]),
        helper.make_node("Tanh", ["second"], ["squashed"]),
        helper.make_node("Mul", ["gate", "squashed"], ["first"]),
        helper.make_node("MatMul", ["first", "head"], ["y"]),
    ]
    state = ["batch", 4]
    model = build(
        nodes,
        [("x", FLOAT, ["batch", 1, 3]), ("h", FLOAT, state), ("c", FLOAT, state)],
        [("y", FLOAT, ["batch", 2]), ("second", FLOAT, state), ("first", FLOAT, state)],
        {"in": normal(1, 3, 4), "again": normal(2, 4, 4), "head": normal(3, 4, 2)},
    )
    found = guess(model)
    assert pairs(found) == {"h": "first", "c": "second"}
    assert len([remark for remark in found.remarks if "check it" in remark]) == 2


def test_inputs_without_names_are_told_by_their_shapes() -> None:
    """Torch calls an unnamed input after the operator that reads it, which says nothing about state."""
    nodes = [
        helper.make_node("MatMul", ["onnx::Gemm_0", "in"], ["driven"]),
        helper.make_node("MatMul", ["onnx::Gemm_1", "again"], ["recalled"]),
        helper.make_node("Add", ["driven", "recalled"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["25"]),
        helper.make_node("MatMul", ["25", "head"], ["onnx::Gemm_26"]),
    ]
    model = build(
        nodes,
        [("onnx::Gemm_0", FLOAT, ["batch", 3]), ("onnx::Gemm_1", FLOAT, ["batch", 4])],
        [("onnx::Gemm_26", FLOAT, ["batch", 3]), ("25", FLOAT, ["batch", 4])],
        {"in": normal(1, 3, 4), "again": normal(2, 4, 4), "head": normal(3, 4, 3)},
    )
    found = guess(model)
    assert found.inputs[0].name == "onnx::Gemm_0"
    assert pairs(found) == {"onnx::Gemm_1": "25"}
    assert "is guessed to be its next value, because it fits; check it" in found.remarks[0]


def test_state_that_is_frozen_in_the_graph_is_told() -> None:
    """Keras with stateful=True: the graph would answer each timestep as if it were the first."""
    (warning,) = guess(exported.stateful_keras()).warnings
    assert "1 recurrent operator (LSTM) start from the same values in every call" in warning
    assert "stateful=True" in warning


def test_a_window_that_starts_anew_is_told() -> None:
    """An LSTM over a window keeps nothing beyond it, which is as its authors want it."""
    (warning,) = guess(exported.darts_block()).warnings
    assert "nothing is kept between timesteps but the window" in warning


def open_window(time: str) -> onnx.ModelProto:
    """A graph without state over any number of timesteps."""
    node = helper.make_node("MatMul", ["x", "head"], ["y"])
    return build(
        [node], [("x", FLOAT, ["batch", time, 3])], [("y", FLOAT, ["batch", time, 2])], {"head": normal(1, 3, 2)}
    )


def test_a_window_of_any_length_is_asked_for() -> None:
    """Only its user knows how much of the past it needs."""
    (question,) = guess(open_window("time")).questions
    assert question.name == "window"
    answered = guess(open_window("time"), window=7)
    assert not answered.questions
    assert (answered.window, answered.features) == (7, 3)


def with_constant(name: str, kind: int, shape: list[int | str | None]) -> onnx.ModelProto:
    """A running sum with one more input."""
    return build(
        [
            helper.make_node("Add", ["x", "total"], ["total_next"]),
            helper.make_node("Cast", [name], ["number"], to=FLOAT),
            helper.make_node("Mul", ["total_next", "number"], ["y"]),
        ],
        [("x", FLOAT, ["batch", 3]), ("total", FLOAT, ["batch", 3]), (name, kind, shape)],
        [("y", FLOAT, ["batch", 3]), ("total_next", FLOAT, ["batch", 3])],
        {},
    )


def test_a_constant_without_a_known_name_is_asked_for() -> None:
    """A sample rate is guessed; another number is not."""
    assert guess(with_constant("sampling_rate", INT64, [])).inputs[1].value == 16000
    (question,) = guess(with_constant("beam", INT64, [])).questions
    assert question.name == "beam"
    assert guess(with_constant("beam", INT64, []), beam=3).inputs[1].value == 3


def test_a_width_that_is_open_is_asked_for_by_its_name() -> None:
    """The name is that of the dimension, or of the tensor where the dimension has none."""

    def open_width(width: str | None) -> onnx.ModelProto:
        shape = ["batch", width]
        node = helper.make_node("Add", ["x", "total"], ["total_next"])
        copy = helper.make_node("Identity", ["total_next"], ["y"])
        tensors = [[(name, FLOAT, shape) for name in names] for names in (("x", "total"), ("y", "total_next"))]
        return build([node, copy], tensors[0], tensors[1], {})  # type: ignore[arg-type]

    assert [question.name for question in guess(open_width("samples")).questions] == ["samples", "samples"]
    assert not guess(open_width("samples"), samples=80).questions
    assert [question.name for question in guess(open_width(None)).questions] == ["x.1", "total.1"]


def test_an_answer_to_nothing_is_refused() -> None:
    """Its name is wrong, and the message has the right ones."""
    with pytest.raises(ValueError, match=r"'widow' is not open in this graph, expected one of: time, window"):
        guess(open_window("time"), widow=3)


def test_a_state_that_grows_is_no_guess() -> None:
    """A cache that is longer after each timestep cannot be stored: it is asked what it is."""
    found = guess(with_constant("rate", INT64, []))
    grown = Findings({"y": ("batch", 3)}, (), {"total": (1, 4)}, "")
    apply_findings(found, grown)
    assert "'total_next' came out with shape [1, 4]" in found.questions[0].text


def test_a_batch_that_cannot_be_told_apart_is_none() -> None:
    """Where a trial finds no batch axis in an output, rows run one by one."""
    found = guess(with_constant("rate", INT64, []))
    assert found.batched
    apply_findings(found, Findings({"y": (1, 3)}, (), {}, "no axis of output 'y' is the batch"))
    assert not found.batched
    assert found.inputs[0].dims == (1, 3)


def test_metadata_of_darts_that_is_broken_is_passed_over() -> None:
    """It is a hint, and the graph tells the same."""
    file = read(exported.darts_rnn())
    for text in ("", "[1]", '{"feature_input_names": 3}', '{"feature_input_names": []}'):
        found = guess_description(replace(file, metadata={"darts.onnx_spec": text}))
        assert pairs(found) == {"state_in_0": "state_out_0", "state_in_1": "state_out_1"}


def test_a_forecast_that_is_called_as_x_is_no_state() -> None:
    """x_next has the shape of x and its name; x is what has a name for it, and h is state."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["h_next"]),
        helper.make_node("Tanh", ["h_next"], ["x_next"]),
    ]
    shape = ["batch", 3]
    tensors = [[(name, FLOAT, shape) for name in names] for names in (("h", "x"), ("x_next", "h_next"))]
    found = guess(build(nodes, tensors[0], tensors[1], {}))  # type: ignore[arg-type]
    assert found.inputs[0].name == "x"
    assert pairs(found) == {"h": "h_next"}
    assert [output.name for output in found.outputs] == ["x_next"]


def test_one_number_beside_a_longer_x_is_a_setting() -> None:
    """Such as the limit of a noise filter: asked for, since nobody sends it with each timestep."""
    assert [question.name for question in guess(with_constant("limit_db", FLOAT, [1])).questions] == ["limit_db"]


def test_a_length_or_a_mask_is_never_x() -> None:
    """Though it may stand first."""
    model = with_constant("lengths", INT64, ["batch"])
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(reversed(inputs))
    for tensor, node in ((model.graph.input[2], model.graph.node[0]),):
        tensor.name = node.input[0] = "signals"  # no name that is known for x
    assert guess(model).inputs[0].name == "signals"


def test_an_integer_of_each_stream_is_given_once() -> None:
    """Such as the number of a speaker."""
    other = guess(with_constant("speaker", INT64, ["batch"])).inputs[1]
    assert (other.kind, other.dims) == ("stream", ("batch",))


def test_an_axis_of_x_that_could_be_the_batch_too_is_known() -> None:
    """Two open axes without names: the trial of `tidegate inspect` decides."""
    model = exported.time_major_lstm()
    for tensor in (*model.graph.input, *model.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    file = read(model)
    found = guess_description(file)
    assert found.inputs[0].dims == ("batch", 1, 3)
    assert found.other_batch_axes == [1]
    assert guess_description(file, batch_axis=1).inputs[0].dims == (1, "batch", 3)


def test_a_batch_that_is_fixed_above_one_is_told() -> None:
    """A graph for four streams at once is taken for one stream, which is seldom what is wanted."""
    node = helper.make_node("Add", ["x", "total"], ["total_next"])
    copy = helper.make_node("Identity", ["total_next"], ["y"])
    tensors = [[(name, FLOAT, [4, 3]) for name in names] for names in (("x", "total"), ("y", "total_next"))]
    found = guess(build([node, copy], tensors[0], tensors[1], {}))
    assert found.features == 12
    assert "the first dimension of 'x' is 4 and taken as part of a timestep" in found.remarks[-1]
