"""What a command loads before it looks at the data."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["train", "tune", "backtest"])
def test_a_bad_table_is_refused_before_torch_is_loaded(tmp_path: Path, command: str) -> None:
    """Torch takes seconds to load, and nobody waits for them to hear of a word among numbers."""
    (tmp_path / "bad.csv").write_text("time,a\n2024-01-01,1\n2024-01-02,x\n", encoding="utf-8")
    program = f"""import sys
from tidegate.training.cli.app import main
try:
    main([{command!r}, "--data", "bad.csv", "--target", "a"])
finally:
    print(sorted({{"torch", "onnx", "onnxruntime"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "[]\n"), ended.stderr
    assert "column 'a'" in ended.stderr
