"""The mistakes of a description: all of them at once, in its own words, each with what would fix it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.engines import load
from tests.foreign_graphs import DARTS, FOREIGN, darts_recurrent, darts_window, rank_three, two_inputs
from tests.graphs import FLOAT, INT64, build, lstm
from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model

GRAPH = build(
    [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Identity", ["h"], ["h_next"]),
        helper.make_node("Identity", ["c"], ["c_next"]),
        helper.make_node("Identity", ["n"], ["n_next"]),
        helper.make_node("Identity", ["b"], ["b_next"]),
    ],
    [
        ("x", FLOAT, ["batch", 2]),
        ("h", FLOAT, ["batch", 3]),
        ("c", FLOAT, ["batch", 4]),
        ("n", INT64, ["batch"]),
        ("b", TensorProto.BOOL, ["batch", 2]),
    ],
    [
        ("y", FLOAT, ["batch", 2]),
        ("h_next", FLOAT, ["batch", 3]),
        ("c_next", FLOAT, ["batch", 4]),
        ("n_next", INT64, ["batch"]),
        ("b_next", TensorProto.BOOL, ["batch", 2]),
    ],
)
HEAD = "contract = 1\nfeatures = 2\n"
OUTPUTS = 'outputs = [{name = "y"}]\n'
STATES = {
    "h": '{name = "h", next = "h_next"}',
    "c": '{name = "c", next = "c_next"}',
    "n": '{name = "n", next = "n_next"}',
    "b": '{name = "b", next = "b_next"}',
}


def toml(*, head: str = HEAD, outputs: str = OUTPUTS, more: str = "", **states: str) -> str:
    """A model.toml for `GRAPH`, with some of its parts replaced."""
    return f"{head}{outputs}state = [{', '.join((STATES | states).values())}]\n{more}"


def mistakes(text: str, graph: bytes = GRAPH) -> tuple[str, ...]:
    """What is wrong with a model.toml."""
    with pytest.raises(ContractBroken) as caught:
        load(graph, sidecar=text)
    assert "\n" not in str(caught.value)
    return caught.value.mistakes


def test_a_description_of_names_is_enough_where_one_dimension_is_open() -> None:
    """The shapes are those of the graph, and the open dimension is the batch."""
    spec = load(GRAPH, sidecar=toml()).spec
    assert [part.shape for part in spec.state] == [(3,), (4,), (), (2,)]
    assert [feature.name for feature in spec.features] == ["x0", "x1"]
    assert spec.batches


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (toml(more="handle_missing = true"), "unknown key 'handle_missing': did you mean 'handles_missing'?"),
        (
            toml(h='{name = "h", next = "h_next", inital = 1.0}'),
            "state 'h', unknown key 'inital': did you mean 'initial'?",
        ),
        (toml(more="zzz = 1"), "unknown key 'zzz': remove it; the keys here are contract, task, "),
        (toml(head='contract = 1\nfeatures = [{name = "a"}, {name = "a"}]\n'), "features: 'a' is there 2 times"),
        (
            toml(head='contract = 1\nfeatures = [{name = "a"}, {name = ""}]\n'),
            "features[1], name: got '', expected a name",
        ),
        (toml(head='contract = 1\nfeatures = [{name = "a"}, {unit = "V"}]\n'), "features[1], 'name' is missing"),
        (toml(head="contract = 1\nfeatures = true\n"), "features: got true, expected how many there are"),
        (
            toml(head='contract = 1\nfeatures = [{name = "a", low = 2, high = 1}, {name = "b"}]\n'),
            "feature 'a': low is 2.0, above high, which is 1.0",
        ),
        (
            toml(n='{name = "n", next = "n_next", initial = 0.5}'),
            "state 'n' has the value 0.5, expected a whole number",
        ),
        (
            toml(n='{name = "n", next = "n_next", initial = nan}'),
            "state 'n' has the value nan, expected a whole number",
        ),
        (
            toml(n='{name = "n", next = "n_next", initial = 1e30}'),
            "state 'n' has the value 1e+30, expected a whole number",
        ),
        (toml(b='{name = "b", next = "b_next", initial = nan}'), "state 'b' has the value nan, expected true or false"),
        (toml(b='{name = "b", next = "b_next", initial = 2}'), "state 'b' has the value 2, expected true or false"),
        (
            toml(h='{name = "h", next = "h_next", initial = nan}'),
            "state 'h' has the value nan, expected a finite number",
        ),
        (toml(h='{name = "h", next = "h_next", initial = true}'), "state 'h' has the value true, expected a number"),
        (
            toml(h='{name = "h", next = "h_next", initial = 1e39}'),
            "state 'h' has the value 1e+39, which does not fit into",
        ),
        (
            toml(h='{name = "h", next = "h_next", initial = "zero"}'),
            "state 'h', initial: got 'zero', expected a number",
        ),
        (
            toml(h='{name = "h", next = "h_next", initial = [0, "a", 0]}'),
            "state 'h', initial[1]: got 'a', expected a number, or a flat list of numbers",
        ),
        (
            toml(h='{name = "h", next = "h_next", shape = ["batch", 0]}'),
            "state 'h', shape[1]: got 0, expected a list of",
        ),
        (toml(more='ignore = ["z"]'), "ignore: 'z' is not an output of the graph"),
        (toml(more='ignore = ["y"]'), "ignore: 'y' is described as an output"),
        (toml(more='inputs = [{name = "h", value = 1}]'), "'h' is described as state and as an input"),
        (toml(more='inputs = [{name = "x", value = 1}]'), "input 'x' has the features, so each timestep brings it"),
        (toml(more="period_s = 0"), "period_s: got 0, expected a number of seconds above 0"),
        (toml(outputs='outputs = [{name = "y"}, {name = "y"}]\n'), "outputs: 'y' is there 2 times"),
        (toml(head="contract = 1\nfeatures = 3\n"), "input 'x' has shape [batch, 2], expected [batch, 3]"),
        (toml(more="window = 3"), "input 'x' has shape [batch, 2], expected [batch, window]"),
    ],
)
def test_a_mistake_is_told_with_what_is_expected(text: str, mistake: str) -> None:
    """One sentence, and no other beside it."""
    (told,) = mistakes(text)
    assert mistake in told


def test_all_mistakes_are_told_at_once() -> None:
    """Those of the text, those between its parts, and those against the graph."""
    told = mistakes(
        toml(
            head='contract = 1\nfeatures = [{name = "a"}, {name = "a"}, {name = "b"}]\nflavour = 1\n',
            outputs='outputs = [{name = "z"}]\n',
            h='{name = "h", next = "h_next", initial = true}',
            c='{name = "c", shape = ["batch", 4]}',
            n='{name = "n", next = "n_next", initial = 0.5}',
            b='{name = "b", next = "b_next", shape = ["batch", 5]}',
        )
    )
    parts = [
        "'flavour'",
        "'next' is missing",
        "'a' is there 2 times",
        "'x' has shape",
        "'h' has",
        "'n' has",
        "'b' has",
        "'z'",
    ]
    for part in parts:
        assert [mistake for mistake in told if part in mistake], (part, told)


def test_several_mistakes_are_numbered() -> None:
    """In one line, as every error that a server ends with."""
    with pytest.raises(ContractBroken, match=r"toy/1: 2 mistakes: \(1\) .*'zzz'.*; \(2\) .*'n'"):
        load(GRAPH, sidecar=toml(n='{name = "n", next = "n_next", initial = 0.5}', more="zzz = 1"))


def test_next_states_that_are_exchanged_are_told() -> None:
    """Where their shapes tell."""
    told = mistakes(toml(h='{name = "h", next = "c_next"}', c='{name = "c", next = "h_next"}'))
    assert "output 'c_next' has shape [batch, 4], expected [batch, 3]; 'h_next' fits" in told[0]
    assert "are the next values of 'h' and 'c' exchanged?" in told[0]


def test_open_dimensions_have_the_names_of_the_graph() -> None:
    """A message shows which dimension is open, and asks for what it cannot know."""
    graph = build(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, ["n", "time", 2])], [("y", FLOAT, ["n", "time", 2])]
    )
    told = mistakes(f"{HEAD}{OUTPUTS}", graph)
    assert "input 'x' has shape [n, time, 2] with several open dimensions; describe its shape" in told[0]
    assert "output 'y' has shape [n, time, 2]" in told[1]


def test_names_count_for_more_than_their_order() -> None:
    """A state tensor whose next value is another's is no mistake where nothing tells it."""
    assert load(lstm()).spec.state[1].next_name == "h_next"


def test_what_darts_writes_is_read_as_it_is() -> None:
    """Names and shapes are in its metadata and in the graph; static covariates are given once for a stream."""
    graph = build(
        [
            helper.make_node("Concat", ["past_target", "future_covariates"], ["both"], axis=2),
            helper.make_node("Add", ["both", "static_covariates"], ["prediction"]),
        ],
        [
            ("past_target", FLOAT, [1, 1, 2]),
            ("future_covariates", FLOAT, [1, 1, 1]),
            ("static_covariates", FLOAT, [1, 1, 3]),
        ],
        [("prediction", FLOAT, [1, 1, 3])],
    )
    spec = {
        **DARTS,
        "input_chunk_length": 1,
        "feature_input_names": ["past_target", "future_covariates", "static_covariates"],
        "output_names": ["prediction"],
        "state_input_names": [],
        "state_output_names": [],
        "stepwise_state": False,
    }
    model = onnx.load_from_string(graph)
    helper.set_model_props(model, {"darts.onnx_spec": json.dumps(spec)})
    read = load(model.SerializeToString()).spec
    assert [(part.name, part.shape, part.kind) for part in read.inputs] == [
        ("past_target", (1, 2), "timestep"),
        ("future_covariates", (1, 1), "timestep"),
        ("static_covariates", (1, 3), "stream"),
    ]
    assert read.outputs[0].shape == (1, 3)


@pytest.mark.parametrize("make", [darts_recurrent, darts_window])
def test_a_model_toml_wins_over_darts(make: Callable[[], Any]) -> None:
    """The user wrote it beside the graph, to name the features, for example."""
    state = 'state = [{name = "state_in_0", next = "state_out_0"}]' if make is darts_recurrent else "window = 3"
    text = (
        'contract = 1\ninput = "past_target"\nfeatures = [{name = "a"}, {name = "b"}]\n'
        f'outputs = [{{name = "prediction"}}]\n{state}'
    )
    spec = load(make().graph, sidecar=text).spec
    assert [feature.name for feature in spec.features] == ["a", "b"]


def test_metadata_of_darts_that_is_broken_is_refused() -> None:
    """In one line."""
    model = onnx.load_from_string(darts_window().graph)
    helper.set_model_props(model, {"darts.onnx_spec": "{}"})
    with pytest.raises(ContractBroken, match=r"metadata 'darts\.onnx_spec' is not the JSON"):
        load(model.SerializeToString())


def spec_fingerprint(text: str, graph: bytes = GRAPH, digest: str | None = None) -> str:
    """The fingerprint of a graph with that model.toml."""
    return Model("toy", "1", graph, text, digest).spec.fingerprint


def test_the_fingerprint_does_not_count_how_a_description_is_written() -> None:
    """Comments, the order of keys and defaults that are written out change nothing."""
    written = toml(
        h='{shape = ["batch", 3], next = "h_next", initial = 0, name = "h"}', more="# a comment\nstate_ = 1\n"
    )
    assert spec_fingerprint(written.replace("state_ = 1\n", "")) == spec_fingerprint(toml())


@pytest.mark.parametrize(
    "changed",
    [
        toml(h=STATES["c"], c=STATES["h"]),
        toml(h='{name = "h", next = "h_next", initial = 1}'),
        toml(more="handles_missing = true"),
        toml(head='contract = 1\nfeatures = [{name = "a"}, {name = "b"}]\n'),
    ],
)
def test_the_fingerprint_counts_what_a_description_says(changed: str) -> None:
    """Exchange h and c, or give streams another beginning: old state must not go into it."""
    assert spec_fingerprint(changed) != spec_fingerprint(toml())


def test_the_fingerprint_counts_the_files() -> None:
    """Other weights, another fingerprint, with the same description."""
    assert spec_fingerprint(toml(), digest="a") != spec_fingerprint(toml(), digest="b")


def test_inputs_of_a_stream_come_behind_those_of_a_timestep() -> None:
    """The first input is x, whatever the order of the description."""
    foreign = two_inputs()
    text = foreign.toml.replace(
        '{name = "on"}, {name = "voice", per = "stream"}', '{name = "voice", per = "stream"}, {name = "on"}'
    )
    assert text != foreign.toml
    assert [part.name for part in load(foreign.graph, sidecar=text).spec.inputs] == ["x", "on", "voice"]


def test_an_input_without_batch_beside_a_batch_runs_one_by_one() -> None:
    """Streams cannot share what has no batch."""
    assert not load(FOREIGN["scalar state"]().graph, sidecar=FOREIGN["scalar state"]().toml).spec.batches
    assert load(rank_three().graph, sidecar=rank_three().toml).spec.batches


def test_a_window_begins_as_described() -> None:
    """One number, or one timestep's values, before the first timestep."""
    foreign = FOREIGN["window"]()
    text = foreign.toml + 'inputs = [{name = "x", initial = [1.5, -2]}]\n'
    (window,) = load(foreign.graph, sidecar=text).spec.state
    assert np.array_equal(window.initial, [[1.5, -2]] * 3)
