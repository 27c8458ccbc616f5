"""The exported graph: what is in it, what it computes, and what reaches the disk."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.once import make_once
from tidegate.training import errors
from tidegate.training.data.scaler import Scaler
from tidegate.training.judging.graph import Graph
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network, build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.publishing.parity import check_parity
from tidegate.training.publishing.version import free_version, write_version
from tidegate.training.settings import Architecture, Classify

# In training standard deviations; see `Parity`.
LIMIT = 1e-5


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph to break."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def thousandth_off(model: onnx.ModelProto, constant: str) -> onnx.ModelProto:
    """The graph with the first number of a constant a thousandth larger."""
    model = copy_of(model)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.001
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, constant))
    return model


@pytest.mark.parametrize("batch", [1, 7])
def test_stepping_the_graph_equals_the_sequence(
    exported: tuple[Network, onnx.ModelProto], graph: Graph, sensor_rows: Callable[..., Any], batch: int
) -> None:
    """A thousand timesteps with missing values, in torch at once and in the graph one by one, differ by 1e-5 at most."""
    network, _ = exported
    x = sensor_rows(1000, batch)
    with torch.no_grad():
        wanted, wanted_state = network.sequence(torch.from_numpy(x), network.initial_state(batch))
    got, state = graph.replay(x)
    assert list(got) == list(wanted) == ["forecast", "quantiles"]
    for name, part in wanted.items():
        assert np.abs((got[name] - part.numpy()) / network.unit(name)).max() <= LIMIT
    for name, part in zip(network.state_names, wanted_state, strict=True):
        assert np.abs(state[name] - part.numpy()).max() <= LIMIT


def test_a_layer_is_one_node(exported: tuple[Network, onnx.ModelProto]) -> None:
    """Each layer is one fused LSTM node, its weights constants of the graph, not computed in it."""
    model = exported[1]
    layers = [node for node in model.graph.node if node.op_type == "LSTM"]
    constants = {constant.name for constant in model.graph.initializer}
    assert len(layers) == 2
    assert all(weight in constants for layer in layers for weight in layer.input[1:4])
    assert not any(
        weight in node.input for node in model.graph.node if node.op_type in {"Split", "Slice"} for weight in constants
    )


def test_the_batch_alone_is_symbolic(exported: tuple[Network, onnx.ModelProto]) -> None:
    """Every input and output has the symbolic dimension `batch` once, and no other."""
    model = exported[1]
    for value in [*model.graph.input, *model.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        assert [dimension.dim_param for dimension in dimensions if dimension.dim_param] == ["batch"]
        assert all(dimension.dim_param or dimension.dim_value > 0 for dimension in dimensions)


@pytest.mark.parametrize("batch", [2, 3, 7, 32, 64])
def test_rows_do_not_depend_on_the_batch(graph: Graph, sensor_rows: Callable[..., Any], batch: int) -> None:
    """A row's forecasts and state are the same bits alone and among others."""
    x = sensor_rows(50, batch)
    together, state = graph.replay(x)
    for row in (0, batch - 1):
        alone, _ = graph.replay(np.ascontiguousarray(x[:, row : row + 1]))
        assert all(np.array_equal(together[name][:, row], alone[name][:, 0]) for name in together)
    assert all(np.isfinite(part).all() for part in state.values())


def test_missing_values_leave_the_state_of_the_graph_healthy(graph: Graph, sensor_rows: Callable[..., Any]) -> None:
    """After silence in one row the state has no NaN, and the other rows have the same bits as without it."""
    x = sensor_rows(100, 4)
    wanted, _ = graph.replay(x)
    x[20:, 1] = np.nan
    got, state = graph.replay(x)
    assert all(np.isfinite(part).all() for part in (*got.values(), *state.values()))
    for name in got:
        assert np.array_equal(np.delete(got[name], 1, axis=1), np.delete(wanted[name], 1, axis=1))


def test_the_description_is_that_of_the_contract(exported: tuple[Network, onnx.ModelProto]) -> None:
    """It has exactly the keys of docs/model.md, and names, shapes and order are those of the graph."""
    _, model = exported
    description = json.loads(model.metadata_props[0].value)
    assert list(description) == [
        "contract",
        "task",
        "cell",
        "period_s",
        "handles_missing",
        "features",
        "outputs",
        "state",
        "data",
        "scores",
    ]
    assert [list(feature) for feature in description["features"]] == [
        ["name", "unit", "low", "high", "mean", "std"]
    ] * 3
    assert list(description["outputs"][0]) == ["name", "shape", "targets", "units", "horizons", "quantiles"]
    assert list(description["data"]) == ["name", "sha256", "rows"]
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes.pop("x") == ["batch", 3]
    for described in description["outputs"]:
        assert shapes.pop(described["name"]) == described["shape"]
    for described in description["state"]:
        assert list(described) == ["name", "next", "shape"]
        assert shapes.pop(described["name"]) == described["shape"] == shapes.pop(described["next"])
    assert shapes == {}


def test_the_graph_has_nothing_of_the_machine(exported: tuple[Network, onnx.ModelProto]) -> None:
    """No path and no stack trace of whoever exported it is in the file."""
    content = exported[1].SerializeToString()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_parity_is_measured(exported: tuple[Network, onnx.ModelProto]) -> None:
    """An untouched graph passes the gate, with a difference that is not nil because the two are really computed."""
    parity = check_parity(*exported)
    assert 0 < parity.outputs <= LIMIT
    assert parity.state <= LIMIT
    assert parity.batches == (1, 7)
    assert parity.steps == 1000


@pytest.mark.parametrize("constant", ["mean", "head.share.last", "cells.0.onnx_w", "cells.1.onnx_r", "cells.1.onnx_b"])
def test_a_graph_that_differs_is_refused(exported: tuple[Network, onnx.ModelProto], constant: str) -> None:
    """The largest weight of a tensor, a thousandth off, does not pass the gate."""
    network, model = exported
    with pytest.raises(errors.ParityError, match="expected at most 1e-05; nothing was written"):
        check_parity(network, thousandth_off(model, constant))


@pytest.fixture(scope="module")
def sharp(
    make_facts: Callable[[int], DataFacts], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Network, onnx.ModelProto]:
    """A network whose classes turn on a hundredth of what the cells say, and its graph; leave it as it is."""
    mean, std = np.full(3, 20, np.float32), np.full(3, 4, np.float32)
    architecture = Architecture(features=3, hidden=8, task=Classify(classes=("idle", "run")))
    network = build_network(architecture, Scaler(mean, std, mean - std, mean + std, std / 4, ()), seed=2).eval()
    with torch.no_grad():
        network.head.line.weight.mul_(1500)
    network.prepare_export()
    content = make_once(
        tmp_path_factory,
        "sharp",
        lambda: build_graph(network, describe(network, make_facts(3), scores={})).SerializeToString(),
    )
    return network, onnx.load_from_string(content)


def test_rounding_is_no_fault_of_the_graph(sharp: tuple[Network, onnx.ModelProto]) -> None:
    """Where float32 itself is further from float64 than the limit, so may the graph be from the network."""
    parity = check_parity(*sharp)
    assert parity.outputs > LIMIT
    assert parity.rounding > LIMIT
    assert parity.outputs <= parity.limit == pytest.approx(3 * parity.rounding)


def test_rounding_allows_nothing_where_there_is_little(exported: tuple[Network, onnx.ModelProto]) -> None:
    """A network that is not sharp is held to the limit."""
    parity = check_parity(*exported)
    assert 0 < parity.rounding < LIMIT / 3
    assert parity.limit == LIMIT


@pytest.mark.parametrize("constant", ["head.line.weight", "cells.0.onnx_w", "cells.0.onnx_r", "cells.0.onnx_b"])
def test_a_sharp_graph_that_differs_is_refused(sharp: tuple[Network, onnx.ModelProto], constant: str) -> None:
    """One weight that is a thousandth off is more than rounding for a sharp network too."""
    network, model = sharp
    with pytest.raises(errors.ParityError, match=r"of the graph and of the network differ by .* nothing was written"):
        check_parity(network, thousandth_off(model, constant))


def test_quantiles_do_not_depend_on_the_batch(
    make_network: Callable[..., Network], make_facts: Callable[[int], DataFacts], sensor_rows: Callable[..., Any]
) -> None:
    """Nor do they where a row's are too few for a vector of the processor, and lie far apart as learned ones do."""
    network = make_network(hidden=4, quantiles=(0.1, 0.5))
    with torch.no_grad():
        network.head.spread.weight.mul_(10)
    graph = Graph(build_graph(network, describe(network, make_facts(3), scores={})).SerializeToString(), "test")
    x = sensor_rows(500, 7)
    together, _ = graph.replay(x)
    for row in range(7):
        alone, _ = graph.replay(np.ascontiguousarray(x[:, row : row + 1]))
        assert alone["quantiles"].tobytes() == together["quantiles"][:, row : row + 1].tobytes()


def test_a_large_cell_state_may_be_rounded(
    make_network: Callable[..., Network], make_facts: Callable[[int], DataFacts]
) -> None:
    """A cell that forgets nothing counts into the hundreds, where float32 is coarser than the limit, and still passes."""
    network = make_network(hidden=4)
    with torch.no_grad():
        network.cells[0].kernel.bias_ih_l0[:8] = 20.0  # input and forget gates open
        network.cells[0].kernel.bias_ih_l0[8:12] = torch.tensor([0.5, -0.5, 0.4, -0.4])
    parity = check_parity(network, build_graph(network, describe(network, make_facts(3), scores={})))
    assert parity.state <= LIMIT


def test_a_graph_that_gives_nan_is_refused(exported: tuple[Network, onnx.ModelProto]) -> None:
    """NaN is no small difference."""
    network, model = exported
    model = copy_of(model)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.line.bias")
    values = np.full(tensor.dims, math.nan, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "head.line.bias"))
    with pytest.raises(errors.ParityError):
        check_parity(network, model)


def test_a_retrained_network_exports_its_new_weights(
    make_network: Callable[..., Network], make_facts: Callable[[int], DataFacts]
) -> None:
    """The prepared buffers follow the weights: a second export of a changed network is of the changed one."""
    network = make_network(hidden=4)
    description = describe(network, make_facts(3), scores={})
    build_graph(network, description)
    with torch.no_grad():
        network.cells[0].kernel.weight_ih_l0.mul_(2)
    check_parity(network, build_graph(network, description))


def test_a_version_is_written_whole(exported: tuple[Network, onnx.ModelProto], tmp_path: Path) -> None:
    """The folder holds the graph, the card and the report, and nothing else is left beside it."""
    folder = write_version(tmp_path, "toy", 3, exported[1].SerializeToString(), {"name": "toy"}, "<p/>")
    assert folder == tmp_path / "toy" / "3"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx", "report.html"]
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["3"]
    assert Graph.load(folder).horizons == [1, 3]


def test_a_version_is_never_overwritten(exported: tuple[Network, onnx.ModelProto], tmp_path: Path) -> None:
    """A second write of a version is refused and changes nothing."""
    folder = write_version(tmp_path, "toy", 1, exported[1].SerializeToString(), {"name": "first"}, "<p/>")
    with pytest.raises(errors.VersionExists, match=r"toy.1 exists already.*--version"):
        write_version(tmp_path, "toy", 1, exported[1].SerializeToString(), {"name": "second"}, "<p/>")
    assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == {"name": "first"}


def test_a_write_that_fails_leaves_nothing(exported: tuple[Network, onnx.ModelProto], tmp_path: Path) -> None:
    """A card that cannot be written leaves neither a version nor a scratch folder."""
    with pytest.raises(TypeError):
        write_version(tmp_path, "toy", 1, exported[1].SerializeToString(), {"name": object()}, "<p/>")
    assert list((tmp_path / "toy").iterdir()) == []


def test_the_next_version_is_one_more_than_the_largest(
    exported: tuple[Network, onnx.ModelProto], tmp_path: Path
) -> None:
    """Gaps are not filled, and what is no number does not count."""
    assert free_version(tmp_path, "toy", None) == 1
    for name in ("2", "10", "draft"):
        (tmp_path / "toy" / name).mkdir(parents=True)
    assert free_version(tmp_path, "toy", None) == 11
    assert free_version(tmp_path, "toy", 3) == 3
    with pytest.raises(errors.VersionExists):
        free_version(tmp_path, "toy", 10)
