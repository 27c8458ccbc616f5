"""What Keras itself exports: its own LSTM with states is served, and its stateful one is warned of."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.foreign.graphs import Foreign
from tests.foreign.packages import KERAS, archive
from tests.foreign.served import check_served, check_survival
from tests.once import process_lock, shared_folder
from tests.root import ROOT
from tests.servers import run_command

EXPORT_TIMEOUT_S = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def keras_graphs(tmp_path_factory: pytest.TempPathFactory, packages_cache: Path) -> Callable[[str], Path]:
    """The graphs that `keras_export.py` writes, by name."""
    wheels = [archive(packages_cache, package) for package in KERAS]
    folder = shared_folder(tmp_path_factory) / "keras"
    with process_lock(tmp_path_factory, "keras"):
        if not (folder / "states.onnx").exists():
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as content:
                    content.extractall(folder / "packages")
            command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "foreign" / "keras_export.py"), str(folder)]
            environment = {**os.environ, "PYTHONPATH": str(folder / "packages"), "CUDA_VISIBLE_DEVICES": ""}
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S, check=False
            )
            assert ended.returncode == 0, ended.stderr[-2000:]
    return lambda name: folder / f"{name}.onnx"


def lstm_with_states(keras_graphs: Callable[[str], Path]) -> Foreign:
    """The graph with h and c. Keras keeps the names of inputs, and those of outputs get lost."""
    path = keras_graphs("states")
    graph = onnx.load(path).graph
    y, h_next, c_next = (output.name for output in graph.output)
    x = graph.input[0].name
    return Foreign("Keras LSTM", lambda: onnx.load(path), (x, (1, 1, 3)), {"h": h_next, "c": c_next}, (y,))


async def test_an_lstm_with_states_is_served(
    tmp_path: Path, packages_cache: Path, keras_graphs: Callable[[str], Path]
) -> None:
    """From what `tidegate inspect` has written, though no name tells h from c."""
    await check_served(tmp_path, packages_cache, lstm_with_states(keras_graphs))


async def test_an_lstm_with_states_survives_a_kill(
    tmp_path: Path, packages_cache: Path, keras_graphs: Callable[[str], Path]
) -> None:
    """Its streams go on with the bits of their loops."""
    await check_survival(tmp_path, packages_cache, lstm_with_states(keras_graphs))


def test_a_stateful_lstm_is_warned_of(tmp_path: Path, keras_graphs: Callable[[str], Path]) -> None:
    """stateful=True does not survive the export."""
    path = tmp_path / "model.onnx"
    path.write_bytes(keras_graphs("stateful").read_bytes())
    ended = run_command("inspect", str(path))
    assert ended.returncode == 0
    assert "its exporter froze the state, as Keras does with stateful=True" in ended.stdout
