"""What Keras itself exports: its own LSTM with states is served, and its stateful one is warned of."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.foreign.packages import KERAS, archive
from tests.once import process_lock, shared_folder
from tests.root import ROOT

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
