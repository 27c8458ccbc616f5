"""Weights beside a graph: served from the model's folder, and never from elsewhere."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.graphs import FLOAT, build, describe, running_sum, write_model
from tidegate.core.errors import ContractBroken
from tidegate.core.external_data import external_files
from tidegate.core.model import Model
from tidegate.runtime.model_digest import digest_model
from tidegate.runtime.model_files import ModelCopies, check, scan
from tidegate.runtime.model_load import load_model

WEIGHTS = np.arange(1, 257, dtype=np.float32).reshape(1, 256)


def scaled() -> onnx.ModelProto:
    """Y = x times 256 weights."""
    return onnx.load_from_string(
        build(
            [helper.make_node("Mul", ["x", "W"], ["y"])],
            [("x", FLOAT, ["batch", 1])],
            [("y", FLOAT, ["batch", 256])],
            {"W": WEIGHTS},
            describe(["x"], [{"name": "y", "shape": ["batch", 256]}], []),
        )
    )


def in_branch(location: str) -> onnx.ModelProto:
    """A graph whose weights are a constant in a branch of a branch, in the file `location`."""
    tensor = helper.make_tensor("W", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor)], "inner", [], [])
    for name in ("middle", "outer"):
        branch = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([branch], name, [], [])
    return helper.make_model(graph)


def save(root: Path, location: str = "model.onnx.data") -> Path:
    """The graph `scaled` with its weights in a file beside it. Returns its folder."""
    folder = root / "toy" / "1"
    folder.mkdir(parents=True)
    onnx.save(
        scaled(), str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    if location != "model.onnx.data":
        graph = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        (entry,) = [each for each in graph.graph.initializer[0].external_data if each.key == "location"]
        entry.value = location
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return folder


def serve(root: Path) -> list[Model]:
    """The models below a folder, as a server loads them: from copies."""
    models = []
    copies = ModelCopies(root)
    try:
        for files in scan(root):
            check(files, 1 << 20)
            models.append(load_model(files.name, files.version, copies.add(files)).model)
    finally:
        copies.close()
    return models


def test_weights_beside_the_graph_are_served(tmp_path: Path) -> None:
    """The results are those of one file with everything in it."""
    folder = save(tmp_path)
    model = Model("toy", "1", str(folder / "model.onnx"), None, digest_model("toy/1", folder / "model.onnx"))
    outputs, _ = model.step(np.array([[3]], np.float32), ())
    assert np.array_equal(outputs[0], 3 * WEIGHTS)
    assert [served.spec.title for served in serve(tmp_path)] == ["toy/1"]


def test_a_changed_weight_changes_the_fingerprint(tmp_path: Path) -> None:
    """Old state must not go into other weights, and the graph's own file is the same."""
    folder = save(tmp_path)
    (before,) = serve(tmp_path)
    content = np.fromfile(folder / "model.onnx.data", np.float32)
    (-content).tofile(folder / "model.onnx.data")
    (after,) = serve(tmp_path)
    assert before.spec.fingerprint != after.spec.fingerprint


def test_a_graph_that_describes_itself_keeps_the_hash_of_its_file(tmp_path: Path) -> None:
    """Streams were stored under it."""
    graph = running_sum()
    write_model(tmp_path, graph)
    (served,) = serve(tmp_path)
    assert served.spec.fingerprint == hashlib.sha256(graph).hexdigest()


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../2/weights", "a/../../2/weights", "..", "", "\\\\host\\file", "."]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """Before onnxruntime reads it, with the path."""
    save(tmp_path, location)
    (tmp_path / "toy" / "2").mkdir()
    (tmp_path / "toy" / "2" / "weights").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(ContractBroken, match="toy/1: the graph has weights in "):
        serve(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A link within it is as good as a file: container platforms mount files so."""
    folder = save(tmp_path)
    inside = folder / "..data"
    inside.mkdir()
    (folder / "model.onnx.data").rename(inside / "weights")
    (folder / "model.onnx.data").symlink_to(Path("..data", "weights"))
    digest_model("toy/1", folder / "model.onnx")
    outside = tmp_path / "elsewhere"
    (inside / "weights").rename(outside)
    (inside / "weights").symlink_to(outside)
    with pytest.raises(ContractBroken, match="a link out of its folder"):
        digest_model("toy/1", folder / "model.onnx")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    """The message has the file, and what to do."""
    folder = save(tmp_path)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ContractBroken, match=r"'model\.onnx\.data', which cannot be read: .*copy it beside the graph"):
        serve(tmp_path)


def test_a_pipe_is_no_file_with_weights(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    folder = save(tmp_path)
    (folder / "model.onnx.data").unlink()
    os.mkfifo(folder / "model.onnx.data")
    with pytest.raises(ContractBroken, match="which is not a file"):
        digest_model("toy/1", folder / "model.onnx")
    with pytest.raises(ContractBroken, match="which cannot be read"):
        serve(tmp_path)


def test_bytes_with_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    """Without a folder, onnxruntime would look in the working directory."""
    folder = save(tmp_path)
    with pytest.raises(ContractBroken, match="loaded from its path"):
        Model("toy", "1", (folder / "model.onnx").read_bytes())


def test_files_are_found_in_every_part_of_a_graph() -> None:
    """Constants of branches, and of branches in branches."""
    assert external_files(in_branch("inner.bin").SerializeToString()) == ["inner.bin"]
    assert external_files(running_sum()) == []


def test_a_field_that_protobuf_steps_over_hides_nothing() -> None:
    """Protobuf skips a group that it does not know; what is behind it counts for it."""
    group = bytes([100 << 3 & 0x7F | 0x80 | 3, 6, 100 << 3 & 0x7F | 0x80 | 4, 6])
    with pytest.raises(ValueError, match="wire type"):
        external_files(group + in_branch("inner.bin").SerializeToString())


def test_a_tag_that_protobuf_cuts_hides_nothing() -> None:
    """It uses the lower 32 bits of the number of a field."""
    whole = in_branch("inner.bin").SerializeToString()
    place = whole.index(bytes([7 << 3 | 2]))
    cut = whole[:place] + bytes([0x80 | 7 << 3 | 2, 0x80, 0x80, 0x80, 0x10]) + whole[place + 1 :]
    with pytest.raises(ValueError, match="32 bits"):
        external_files(cut)


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 100])
def test_a_cut_file_is_refused(cut: int) -> None:
    """What is not there could name a file."""
    with pytest.raises(ValueError, match="it "):
        external_files(running_sum()[:-cut])


def test_a_version_that_begins_with_a_zero_is_refused(tmp_path: Path) -> None:
    """1 and 01 are one version, and two folders."""
    write_model(tmp_path, running_sum(), version="1")
    write_model(tmp_path, running_sum(), version="01")
    with pytest.raises(ContractBroken, match="version '01' begins with a zero, expected toy/1"):
        serve(tmp_path)
