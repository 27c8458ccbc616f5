import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.engines import load
from tests.graphs import FLOAT, INT64, build, describe, lstm, picky, running_sum
from tests.oracle import replay, same_bits
from tidegate.core.errors import ContractBroken, ModelFailed
from tidegate.core.model import BOUND_SIZES_MAX, Model

IDENTITIES = [
    helper.make_node("Identity", ["x"], ["y"]),
    helper.make_node("Identity", ["h"], ["h_next"]),
]
DESCRIBED = describe(
    ["a", "b"],
    [{"name": "y", "shape": ["batch", 2]}],
    [{"name": "h", "next": "h_next", "shape": ["batch", 3]}],
)


def plain(
    described: Any = DESCRIBED, *, x: Any = ("batch", 2), h: Any = ("batch", 3), types: Mapping[str, int] | None = None
) -> bytes:
    """A graph that passes x and h through. `types` are the types of its tensors that are not float32."""

    def tensor(name: str, shape: Any) -> Any:
        return name, (types or {}).get(name, FLOAT), list(shape)

    return build(IDENTITIES, [tensor("x", x), tensor("h", h)], [tensor("y", x), tensor("h_next", h)], None, described)


def changed(**changes: Any) -> dict[str, Any]:
    """The description with some keys replaced; None removes a key."""
    whole = {**DESCRIBED, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def refusal_error(graph: bytes, sidecar: str | None = None) -> str:
    """The error for a refused graph."""
    with pytest.raises(ContractBroken) as caught:
        Model("pump", "3", graph, sidecar)
    assert str(caught.value).startswith("pump/3: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_graph_that_matches_its_metadata_is_served() -> None:
    """The graph that the refused graphs below vary is valid."""
    spec = load(plain()).spec
    assert [feature.name for feature in spec.features] == ["a", "b"]
    assert spec.state[0].shape == (3,)


def test_broken_bytes_are_refused() -> None:
    """Bytes that are not ONNX are refused with one line."""
    assert "cannot load the graph" in refusal_error(b"this is no graph")


def test_a_truncated_graph_is_refused() -> None:
    """Half a graph is refused with one line."""
    graph = lstm()
    assert "cannot load the graph" in refusal_error(graph[: len(graph) // 2])


def test_missing_metadata_is_refused() -> None:
    """A graph without a description and without model.toml is refused, and the message names both places."""
    message = refusal_error(plain(None))
    assert "tidegate" in message
    assert "model.toml" in message


def test_bad_json_is_refused() -> None:
    """Metadata that is not JSON is refused."""
    assert "JSON" in refusal_error(plain("{not json"))


@pytest.mark.parametrize("contract", [0, 2])
def test_another_contract_is_refused(contract: int) -> None:
    """An unknown contract number is refused with both numbers."""
    assert f"contract: got {contract}, this server reads 1" in refusal_error(plain(changed(contract=contract)))


@pytest.mark.parametrize("field", ["contract", "features", "outputs"])
def test_a_description_without_a_required_key_is_refused(field: str) -> None:
    """The message names the missing key."""
    assert field in refusal_error(plain(changed(**{field: None})))


def test_no_features_are_refused() -> None:
    """A model needs at least one feature."""
    assert "features" in refusal_error(plain(changed(features=[])))


@pytest.mark.parametrize(
    ("graph", "tensor", "got", "expected"),
    [
        (plain(x=("batch", 5)), "input 'x'", "[batch, 5]", "[batch, 2]"),
        (plain(x=(7, 2)), "input 'x'", "[7, 2]", "[batch, 2]"),
        (plain(h=("batch", 4)), "input 'h'", "[batch, 4]", "[batch, 3]"),
        (plain(h=("batch", "hidden", 2)), "input 'h'", "[batch, hidden, 2]", "[batch, 3]"),
        (
            plain(changed(outputs=[{"name": "y", "shape": ["batch", 9]}])),
            "output 'y'",
            "[batch, 2]",
            "[batch, 9]",
        ),
    ],
)
def test_a_wrong_shape_is_refused(graph: bytes, tensor: str, got: str, expected: str) -> None:
    """The message has the tensor's name and both shapes."""
    assert f"{tensor} has shape {got}, expected {expected}" in refusal_error(graph)


def test_a_next_state_of_another_shape_is_refused() -> None:
    """The next value of a state tensor must have its shape; the message has the name and both shapes."""
    graph = build(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Concat", ["h", "h"], ["h_next"], axis=1),
        ],
        [("x", FLOAT, ["batch", 2]), ("h", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["batch", 2]), ("h_next", FLOAT, ["batch", 6])],
        None,
        DESCRIBED,
    )
    assert "output 'h_next' has shape [batch, 6], expected [batch, 3]" in refusal_error(graph)


def test_two_symbolic_dimensions_are_refused() -> None:
    """A state tensor with two symbolic dimensions has no batch axis, even if described so."""
    state = [{"name": "h", "next": "h_next", "shape": ["batch", "batch"]}]
    message = refusal_error(plain(changed(state=state), h=("batch", "hidden")))
    assert "'h'" in message
    assert "exactly one dimension" in message


def test_a_batch_that_is_fixed_at_more_than_one_is_refused() -> None:
    """A server fills a batch with as many rows as there are, or runs single rows."""
    message = refusal_error(plain(x=(7, 2)))
    assert "input 'x' has shape [7, 2], expected [batch, 2]; its batch is fixed at 7" in message


def test_an_undeclared_input_is_refused() -> None:
    """An input that the description does not mention is named."""
    message = refusal_error(plain(changed(state=[])))
    assert "input h is in the graph, but its description does not mention it" in message


def test_an_undeclared_output_is_refused() -> None:
    """An output that the description does not mention is named."""
    graph = build(
        [*IDENTITIES, helper.make_node("Neg", ["x"], ["extra"])],
        [("x", FLOAT, ["batch", 2]), ("h", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["batch", 2]), ("h_next", FLOAT, ["batch", 3]), ("extra", FLOAT, ["batch", 2])],
        None,
        DESCRIBED,
    )
    assert "output extra is in the graph, but its description does not mention it" in refusal_error(graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "u"}, "input 'u' is not in the graph, expected one of x, h"),
        ({"outputs": [{"name": "z", "shape": ["batch", 2]}]}, "output 'z' is not in the graph"),
        ({"state": [{"name": "g", "next": "h_next", "shape": ["batch", 3]}]}, "input 'g' is not in the graph"),
        ({"state": [{"name": "h", "next": "g_next", "shape": ["batch", 3]}]}, "output 'g_next' is not in the graph"),
    ],
)
def test_a_tensor_that_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message has the tensor in the description and the tensors of the graph."""
    assert message in refusal_error(plain(changed(**changes)))


@pytest.mark.parametrize("name", ["x", "h", "y", "h_next"])
def test_a_type_that_cannot_travel_is_refused(name: str) -> None:
    """A tensor of a type that the protocol does not have is refused by name."""
    tensors = {"x": ["x", "y"], "y": ["x", "y"], "h": ["h", "h_next"], "h_next": ["h", "h_next"]}[name]
    message = refusal_error(plain(types=dict.fromkeys(tensors, TensorProto.STRING)))
    assert f"'{tensors[0]}' is tensor(string), expected one of" in message


def test_a_next_state_of_another_type_is_refused() -> None:
    """The next value of a state tensor must have its type."""
    graph = build(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Cast", ["h"], ["h_next"], to=TensorProto.DOUBLE),
        ],
        [("x", FLOAT, ["batch", 2]), ("h", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["batch", 2]), ("h_next", TensorProto.DOUBLE, ["batch", 3])],
        None,
        DESCRIBED,
    )
    assert "output 'h_next' is float64, expected float32 like state 'h'" in refusal_error(graph)


def test_an_initial_list_of_the_wrong_length_is_refused() -> None:
    """The message names the state and both counts."""
    state = [{"name": "h", "next": "h_next", "shape": ["batch", 3], "initial": [1.0, 2.0]}]
    assert "state 'h' has 2 initial values, expected 3" in refusal_error(plain(changed(state=state)))


@pytest.mark.parametrize("bound", ["low", "high"])
def test_an_infinite_range_is_refused(bound: str) -> None:
    """A training range consists of finite numbers; unknown is null, not infinity."""
    features = [{"name": "a", bound: float("inf")}, {"name": "b"}]
    assert f"feature 'a', {bound}: got inf, expected a finite number" in refusal_error(
        plain(changed(features=features))
    )


TOML = """
contract = 1
input = "u"
handles_missing = true
features = [{name = "a"}, {name = "b", unit = "bar", low = 0.0, high = 1.0}]
outputs = [{name = "y", shape = ["batch", 2]}]
state = [{name = "h", next = "h_next", shape = ["batch", 3], initial = [1, 2, 3]}]
"""
UNDESCRIBED = build(
    [helper.make_node("Identity", ["u"], ["y"]), helper.make_node("Identity", ["h"], ["h_next"])],
    [("u", FLOAT, ["batch", 2]), ("h", FLOAT, ["batch", 3])],
    [("y", FLOAT, ["batch", 2]), ("h_next", FLOAT, ["batch", 3])],
)


def test_a_model_toml_describes_a_graph_without_metadata() -> None:
    """The same keys in TOML do, and `input` is the graph's name for x."""
    model = load(UNDESCRIBED, sidecar=TOML)
    assert model.spec.x.name == "u"
    assert model.spec.handles_missing
    assert model.spec.features[1].unit == "bar"
    outputs, _ = model.step(np.array([[4, 5]], np.float32), model.initial_state(1))
    assert np.array_equal(outputs[0], [[4, 5]])


def test_a_model_toml_that_is_no_toml_is_refused() -> None:
    """The message names the file and the error."""
    assert "model.toml is not TOML" in refusal_error(UNDESCRIBED, "contract = = 1")


def test_metadata_wins_over_a_model_toml() -> None:
    """The graph's own description counts; a file beside it only where there is none."""
    assert load(plain(), sidecar=TOML).spec.x.name == "x"


def test_a_given_initial_state_is_what_streams_begin_with() -> None:
    """A flat list fills a row in order, one number for each element."""
    initial = load(UNDESCRIBED, sidecar=TOML).initial_state(2)[0]
    assert np.array_equal(initial, [[1, 2, 3], [1, 2, 3]])
    one = [{"name": "h", "next": "h_next", "shape": ["batch", 3], "initial": 0.5}]
    assert np.array_equal(load(plain(changed(state=one))).initial_state(1)[0], [[0.5, 0.5, 0.5]])


def test_the_spec_matches_the_description() -> None:
    """The spec has everything of the description, and the graph's fingerprint."""
    import hashlib

    graph = lstm()
    spec = load(graph, "lake", "12").spec
    assert (spec.name, spec.version, spec.title) == ("lake", "12", "lake/12")
    assert spec.fingerprint == hashlib.sha256(graph).hexdigest()
    assert (spec.task, spec.period_s, spec.handles_missing) == ("forecast", 3600.0, True)
    assert [(feature.name, feature.unit, feature.low, feature.high) for feature in spec.features[:1]] == [
        ("s0", "V", -2.0, 2.0)
    ]
    (output,) = spec.outputs
    assert (output.shape, output.targets, output.units, output.horizons) == ((2, 1), ("s0",), ("V",), (1, 3))
    assert [(part.name, part.shape, part.batch_axis) for part in spec.state] == [
        ("last", (8,), 0),
        ("h", (1, 16), 1),
        ("c", (1, 16), 1),
    ]


def test_keys_of_later_contracts_are_ignored() -> None:
    """A description may have keys that this server does not know."""
    assert load(plain(changed(flavour="vanilla"))).spec.features[0].name == "a"


@pytest.mark.parametrize("make", [running_sum, lstm])
def test_a_batch_gives_each_row_what_it_gets_alone(make: Callable[..., bytes]) -> None:
    """Rows do not mix, wherever a state tensor has its batch axis."""
    graph = make()
    model = load(graph)
    rng = np.random.default_rng(1)
    x = rng.integers(-5, 5, (6, 4, len(model.spec.features))).astype(np.float32)  # (steps, batch, features)
    state = model.initial_state(4)
    got: list[list[dict[str, Any]]] = [[], [], [], []]
    for now in x:
        outputs, state = model.step(now, state)
        for row in range(4):
            got[row].append({part.name: value[row] for part, value in zip(model.spec.outputs, outputs, strict=True)})
    for row in range(4):
        assert all(map(same_bits, got[row], replay(graph, x[:, row])))


def test_a_batch_axis_of_1_comes_back_first() -> None:
    """The state of a row is that row's, in the graph's layout, and comes back batch first."""
    model = load(running_sum())
    _, state = model.step(np.array([[1], [2], [3]], np.float32), model.initial_state(3))
    _, state = model.step(np.array([[10], [20], [30]], np.float32), state)
    total, trail, count = state
    assert np.array_equal(total, [[11], [22], [33]])
    assert np.array_equal(trail, [[1, 11], [2, 22], [3, 33]])
    assert np.array_equal(count, [2, 2, 2])
    assert count.dtype == np.int64


@pytest.mark.parametrize("make", [running_sum, lstm])
def test_memory_that_is_used_again_gives_the_bits_of_fresh_memory(make: Callable[..., bytes]) -> None:
    """From the second on, batches of one size use the same memory, wherever a tensor has its batch axis."""
    model = load(make())
    x = np.random.default_rng(1).integers(-5, 5, (6, 4, len(model.spec.features))).astype(np.float32)
    fresh = again = model.initial_state(4)
    for turn, now in enumerate(x):
        expected, fresh = load(make()).step(now, fresh)
        room = model.state_buffers(4)
        assert (room is not None) == (turn > 0)
        if room is not None:
            for mine, theirs in zip(room, again, strict=True):
                mine[:] = theirs
        outputs, following = model.step(now, room if room is not None else again)
        again = tuple(part.copy() for part in following)
        for got, want in zip((*outputs, *again), (*expected, *fresh), strict=True):
            assert got.tobytes() == want.tobytes()


def test_outputs_are_the_callers_own() -> None:
    """The next batch in the same memory does not change them."""
    model = load(running_sum())
    model.state_buffers(2)
    for part in (room := model.state_buffers(2)) or ():
        part[:] = 0
    assert room is not None
    outputs, _ = model.step(np.array([[1], [2]], np.float32), room)
    model.step(np.array([[5], [6]], np.float32), room)
    assert outputs[0].ravel().tolist() == [1, 2]


def test_a_model_keeps_memory_for_a_few_sizes_only() -> None:
    """Batches of single timesteps have all sizes."""
    model = load(running_sum())
    for size in range(1, 3 * BOUND_SIZES_MAX):
        for _ in range(3):
            room = model.state_buffers(size)
            assert room is None or len(room[0]) == size
    assert len(model._batch_bindings) == BOUND_SIZES_MAX
    assert model.state_buffers(1) is None


def test_a_graph_that_raises_is_a_model_failed() -> None:
    """An error of onnxruntime becomes our own error, one line, with the model's name."""
    model = load(picky())
    with pytest.raises(ModelFailed, match="model toy/1 failed: ") as caught:
        model.step(np.array([[99]], np.float32), model.initial_state(1))
    assert "\n" not in str(caught.value)


def test_a_model_without_state_can_be_served() -> None:
    """State is a list, and a list may be empty."""
    graph = build(
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", FLOAT, ["batch", 1])],
        [("y", FLOAT, ["batch", 1])],
        None,
        describe(["x"], [{"name": "y", "shape": ["batch", 1]}], []),
    )
    model = load(graph)
    outputs, state = model.step(np.array([[2.0]], np.float32), model.initial_state(1))
    assert np.array_equal(outputs[0], [[-2]])
    assert state == ()


def test_an_unnamed_dimension_is_a_batch_too() -> None:
    """Some exporters leave the batch dimension without a name."""
    proto = onnx.load_from_string(plain())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    assert load(proto.SerializeToString()).spec.state[0].shape == (3,)


def test_a_graph_written_by_hand_reads_like_the_documentation() -> None:
    """The reader of descriptions accepts the JSON in docs/model.md, key by key."""
    from tests.root import ROOT

    text = (ROOT / "docs" / "model.md").read_text("utf-8").split("```json\n")[1].split("```")[0]
    shown = json.loads(text)
    hidden = shown["state"][0]["shape"][2]
    graph = build(
        [
            helper.make_node("Identity", ["h0"], ["h0_next"]),
            helper.make_node("Concat", ["x", "x"], ["pair"], axis=1),
            helper.make_node("Reshape", ["pair", "shape"], ["forecast"]),
        ],
        [("x", FLOAT, ["batch", 1]), ("h0", FLOAT, [1, "batch", hidden])],
        [("forecast", FLOAT, ["batch", 2, 1]), ("h0_next", FLOAT, [1, "batch", hidden])],
        {"shape": np.array([-1, 2, 1], np.int64)},
        shown,
    )
    assert load(graph).spec.outputs[0].horizons == (1, 6)


def test_an_int64_state_keeps_its_type() -> None:
    """A state tensor keeps the dtype that it has in the graph."""
    described = changed(state=[{"name": "h", "next": "h_next", "shape": ["batch", 3], "initial": [7, 8, 9]}])
    model = load(plain(described, types=dict.fromkeys(("h", "h_next"), INT64)))
    _, state = model.step(np.zeros((1, 2), np.float32), model.initial_state(1))
    assert state[0].dtype == np.int64
    assert np.array_equal(state[0], [[7, 8, 9]])
