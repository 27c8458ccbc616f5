"""States whose next values are exchanged are refused, where the graph tells."""

from pathlib import Path

import onnx
import pytest

from tests.graphs import lstm, write_model
from tests.serving.test_model_check import tried
from tidegate.core.crossed_pairs import crossed_pairs
from tidegate.core.onnx_file import read_onnx

RIGHT = [("h", "h_next"), ("c", "c_next")]
CROSSED = [("h", "c_next"), ("c", "h_next")]


def test_the_operator_tells_h_from_c() -> None:
    """Both have one shape."""
    graph = read_onnx(lstm()).graph
    assert crossed_pairs(graph, RIGHT) == []
    assert crossed_pairs(graph, CROSSED) == [
        (
            "'h' starts a recurrent operator whose last state is in 'h_next', but its next value is said to be 'c_next'; "
            "exchange them"
        ),
        (
            "'c' starts a recurrent operator whose last state is in 'c_next', but its next value is said to be 'h_next'; "
            "exchange them"
        ),
    ]


def test_state_that_no_operator_starts_is_left_alone() -> None:
    """A running sum may feed any other tensor."""
    assert crossed_pairs(read_onnx(lstm()).graph, [("last", "h_next")]) == []


async def test_a_model_with_exchanged_states_is_refused(tmp_path: Path) -> None:
    """Before it takes a stream, with what to do."""
    model = onnx.load_from_string(lstm())
    del model.metadata_props[:]
    inputs = "\n".join(
        f'[[state]]\nname = "{name}"\nnext = "{following}"\n' for name, following in [*CROSSED, *other_states(lstm())]
    )
    sidecar = f'contract = 1\nhandles_missing = true\nfeatures = 8\n[[outputs]]\nname = "forecast"\n{inputs}'
    write_model(tmp_path, model.SerializeToString(), sidecar=sidecar)
    (refused,) = await tried(tmp_path, "toy")
    assert isinstance(refused, str)
    assert "'h' starts a recurrent operator whose last state is in 'h_next'" in refused


def other_states(graph: bytes) -> list[tuple[str, str]]:
    """The pairs of a graph beside h and c."""
    names = {tensor.name for tensor in onnx.load_from_string(graph).graph.input} - {"x", "h", "c"}
    return [(name, f"{name}_next") for name in sorted(names)]


@pytest.mark.parametrize("graph", [lstm()], ids=["lstm"])
async def test_a_model_with_the_right_states_is_served(tmp_path: Path, graph: bytes) -> None:
    """Nothing is found where nothing is wrong."""
    write_model(tmp_path, graph)
    (found,) = await tried(tmp_path, "toy")
    assert not isinstance(found, str)
