"""`tidegate inspect FILE.onnx`: what it prints, what it writes, and what it refuses."""

import random
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.foreign import exported
from tests.foreign.test_guess import open_window, with_constant
from tests.graphs import lstm
from tests.servers import run_command


def write(folder: Path, model: onnx.ModelProto) -> Path:
    """The path of a graph."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def written(path: Path) -> dict[str, Any]:
    """The description beside a graph."""
    return tomllib.loads(path.with_name("model.toml").read_text("utf-8"))


def test_it_prints_the_signature_and_writes_a_description(tmp_path: Path) -> None:
    """Names, types, shapes, what each tensor is taken for; and a model.toml beside the graph."""
    path = write(tmp_path, exported.time_major_lstm())
    ended = run_command("inspect", str(path))
    assert ended.returncode == 0, ended.stderr
    assert "[time, batch, 3] as [1, batch, 3]" in ended.stdout
    assert "state, replaced by cn" in ended.stdout
    assert "a timestep is 3 values; tried for two timesteps" in ended.stdout
    assert written(path) == {
        "contract": 1,
        "input": "x",
        "features": 3,
        "inputs": [{"name": "x", "shape": [1, "batch", 3]}],
        "outputs": [{"name": "y", "shape": [1, "batch", 2]}],
        "state": [
            {"name": "h0", "next": "hn", "shape": [1, "batch", 4]},
            {"name": "c0", "next": "cn", "shape": [1, "batch", 4]},
        ],
    }


def test_a_batch_of_one_is_no_part_of_a_row(tmp_path: Path) -> None:
    """A graph for one stream at a time: clients send and get rows without a dimension of 1, and state is kept whole."""
    path = write(tmp_path, exported.darts_rnn())
    assert run_command("inspect", str(path)).returncode == 0
    found = written(path)
    assert [part["shape"] for part in found["inputs"]] == [["batch", 1, 1]] * 3
    assert found["outputs"][0]["shape"] == ["batch", 1, 1, 1]
    assert found["state"][0]["shape"] == [1, 1, 4]


def test_what_it_cannot_guess_it_asks_for_by_name(tmp_path: Path) -> None:
    """Exit code 1, the name to give with --fill, and a place in the file; with the answer it is 0."""
    path = write(tmp_path, open_window("frames"))
    asked = run_command("inspect", str(path))
    assert asked.returncode == 1
    assert "--fill window=..." in asked.stdout
    assert "window = ?" in path.with_name("model.toml").read_text("utf-8")
    answered = run_command("inspect", str(path), "--fill", "window=9", "--force")
    assert answered.returncode == 0, answered.stderr
    assert written(path)["window"] == 9
    assert written(path)["inputs"][0]["shape"] == ["batch", "window", 3]
    assert written(path)["outputs"][0]["shape"] == ["batch", 9, 2]


@pytest.mark.parametrize(("fill", "expected"), [("beam=3", 3), ("beam=-2", -2)])
def test_a_constant_is_written_in_its_own_type(tmp_path: Path, fill: str, expected: int) -> None:
    """An integer has no point."""
    path = write(tmp_path, with_constant("beam", TensorProto.INT64, []))
    assert run_command("inspect", str(path), "--fill", fill).returncode == 0
    value = written(path)["inputs"][1]["value"]
    assert (value, type(value)) == (expected, int)


@pytest.mark.parametrize("fill", ["beam", "beam=", "=3", "beam=nan", "beam=many"])
def test_an_answer_that_is_no_number_is_refused(tmp_path: Path, fill: str) -> None:
    """One line tells what was got and what was expected."""
    path = write(tmp_path, with_constant("beam", TensorProto.INT64, []))
    ended = run_command("inspect", str(path), "--fill", fill)
    assert ended.returncode == 2
    assert ended.stderr == f"error: --fill: got '{fill}', expected NAME=NUMBER\n"


def test_a_file_is_never_replaced_unasked(tmp_path: Path) -> None:
    """Somebody may have filled it in."""
    path = write(tmp_path, exported.time_major_lstm())
    path.with_name("model.toml").write_text("mine", "utf-8")
    ended = run_command("inspect", str(path))
    assert ended.returncode == 2
    assert "--force replaces it, --output writes to another file" in ended.stderr
    assert path.with_name("model.toml").read_text("utf-8") == "mine"
    assert run_command("inspect", str(path), "--output", str(tmp_path / "other.toml")).returncode == 0
    assert run_command("inspect", str(path), "--force").returncode == 0
    assert written(path) == tomllib.loads((tmp_path / "other.toml").read_text("utf-8"))


def test_frozen_state_is_warned_of(tmp_path: Path) -> None:
    """The file is written, with the warning in it."""
    path = write(tmp_path, exported.stateful_keras())
    ended = run_command("inspect", str(path))
    assert ended.returncode == 0
    assert "warning: no input and no output is state" in ended.stdout
    assert "# WARNING: no input and no output is state" in path.with_name("model.toml").read_text("utf-8")


def test_a_graph_that_describes_itself_gets_no_description(tmp_path: Path) -> None:
    """A server would not read it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(lstm())
    ended = run_command("inspect", str(path))
    assert ended.returncode == 0
    assert "none is written" in ended.stdout
    assert not path.with_name("model.toml").exists()


def test_names_are_written_so_that_toml_reads_them(tmp_path: Path) -> None:
    """Exporters make names of anything: quotes, colons, braces."""
    name = 'onnx::"Flatten"\\{0}\té\x7f'
    node = helper.make_node("Identity", [name], ["{\"1\": 'timer'}"])
    model = exported.build([node], [(name, 1, ["batch", 3])], [("{\"1\": 'timer'}", 1, ["batch", 3])], {})
    path = write(tmp_path, model)
    assert run_command("inspect", str(path)).returncode == 0
    assert written(path)["input"] == name
    assert written(path)["outputs"][0]["name"] == "{\"1\": 'timer'}"


def test_a_trial_finds_the_batch_axis(tmp_path: Path) -> None:
    """Two open axes without names: only one of them lets streams be computed together."""
    model = exported.time_major_lstm()
    for tensor in (*model.graph.input, *model.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    path = write(tmp_path, model)
    assert run_command("inspect", str(path)).returncode == 0
    assert written(path)["inputs"][0]["shape"] == [1, "batch", 3]
    assert written(path)["state"][0]["shape"] == [1, "batch", 4]


def test_a_chunk_that_is_not_one_timestep_is_asked_for(tmp_path: Path) -> None:
    """Some graphs take several frames at once, which only running them tells."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["row"]),
        helper.make_node("Add", ["row", "total"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["y"]),
    ]
    state = ["batch", 12]
    model = exported.build(
        nodes,
        [("x", 1, ["batch", "frames", 3]), ("total", 1, state)],
        [("y", 1, state), ("total_next", 1, state)],
        {"shape": np.array([-1, 12], np.int64)},
    )
    path = write(tmp_path, model)
    asked = run_command("inspect", str(path))
    assert asked.returncode == 1
    assert "it cannot be run with 1 as the size of 'frames' of 'x'" in asked.stdout
    answered = run_command("inspect", str(path), "--fill", "frames=4", "--force")
    assert answered.returncode == 0, answered.stderr
    assert written(path)["features"] == 12


def test_rows_with_other_bits_in_a_batch_run_one_by_one(tmp_path: Path) -> None:
    """The mean over the batch: one stream would change the answers of another."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Add", ["total", "centred"], ["total_next"]),
        helper.make_node("Identity", ["total_next"], ["y"]),
    ]
    shape = ["batch", 2]
    model = exported.build(
        nodes,
        [("x", 1, shape), ("total", 1, shape)],
        [("y", 1, shape), ("total_next", 1, shape)],
        {"axis": np.array([0], np.int64)},
    )
    path = write(tmp_path, model)
    ended = run_command("inspect", str(path))
    assert (
        "rows run one by one, and their state has no batch: in a batch of 2, 'y' has other bits than alone"
        in ended.stdout
    )
    assert written(path)["state"][0]["shape"] == [1, 2]


def crash(message: str, path: Path, *options: str) -> None:
    """Checks that a file is refused with one line that has these words, and that nothing is written."""
    ended = run_command("inspect", str(path), *options)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not path.with_name("model.toml").exists()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    """Random bytes, nothing, no file at all, and bytes that only look like a graph."""
    path = tmp_path / "model.onnx"
    crash("cannot be read: No such file or directory", path)
    path.write_bytes(b"")
    crash("not an ONNX graph: it is empty", path)
    path.write_bytes(random.Random(3).randbytes(4000))
    crash("not an ONNX graph", path)
    whole = exported.time_major_lstm().SerializeToString()
    path.write_bytes(whole[:-20])
    crash("not an ONNX graph: it is cut short", path)


def test_a_graph_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    """An operator that onnxruntime does not know."""
    node = helper.make_node("Rumble", ["x"], ["y"])
    path = write(tmp_path, exported.build([node], [("x", 1, ["batch", 3])], [("y", 1, ["batch", 3])], {}))
    crash("onnxruntime cannot load the graph", path)


@pytest.mark.parametrize("kind", ["STRING", "BFLOAT16"])
def test_types_that_are_not_served_are_refused(tmp_path: Path, kind: str) -> None:
    """With the name of the tensor."""
    dtype = getattr(TensorProto, kind)
    node = helper.make_node("Identity", ["x"], ["y"])
    path = write(tmp_path, exported.build([node], [("x", dtype, ["batch", 3])], [("y", dtype, ["batch", 3])], {}))
    crash(f"'x' is {kind.lower()}, which is not served", path)


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    """A graph does not make us read another file."""
    (tmp_path / "secret").write_bytes(bytes(192))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    exported.write_with_external_weights(exported.time_major_lstm(), path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    path.write_bytes(model.SerializeToString())
    crash("its weights are in '../secret', expected a file in its own folder", path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    """People copy the graph and forget what is beside it."""
    path = tmp_path / "model.onnx"
    exported.write_with_external_weights(exported.time_major_lstm(), path)
    (tmp_path / "model.onnx.data").unlink()
    crash("its weights are in 'model.onnx.data', which is not beside it: copy it there", path)


def endless() -> onnx.ModelProto:
    """A loop that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["kept"], ["kept_on"])],
        "forever",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept_on", TensorProto.FLOAT, ["batch", 1]),
        ],
    )
    nodes = [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)]
    return exported.build(nodes, [("x", 1, ["batch", 1])], [("y", 1, ["batch", 1])], {"true": np.array(True)})


def test_an_endless_graph_is_ended(tmp_path: Path) -> None:
    """It runs in a process of its own, which has a time limit."""
    crash("it did not end within 2 s; --timeout allows more", write(tmp_path, endless()), "--timeout", "2")


def test_a_graph_that_takes_all_memory_is_ended(tmp_path: Path) -> None:
    """A small file can make more than it may have."""
    node = helper.make_node(
        "ConstantOfShape", ["shape"], ["huge"], value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    add = helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0)
    out = helper.make_node("Add", ["x", "sum"], ["y"])
    shape = {"shape": np.array([1 << 18, 3000], np.int64)}
    path = write(tmp_path, exported.build([node, add, out], [("x", 1, ["batch", 1])], [("y", 1, ["batch", 1])], shape))
    crash("it needs more than 2048 MiB of memory", path)


def test_a_table_of_data_goes_to_the_training_package(tmp_path: Path) -> None:
    """The name of the command is the same; what the file is decides."""
    table = tmp_path / "rows.csv"
    table.write_text("time,a\n2026-01-01,1\n2026-01-02,2\n2026-01-03,3\n", "utf-8")
    ended = run_command("inspect", str(table))
    assert "3 rows" in ended.stdout + ended.stderr
