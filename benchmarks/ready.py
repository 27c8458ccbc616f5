"""Measures how long a server takes to be ready: from its start as a process to its ready line, with the committed model.

python benchmarks/ready.py [--rounds 7] [--quick]

Beside it what it cannot be faster than: Python that does nothing, and Python that imports what the server stands on.
"""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import typer
from compare import Comparison, Quick, Rounds
from machine import ROOT
from server_process import ServerProcess, serve

BASE = "tidegate"
FLOORS = {
    "python -c pass": "pass",
    "import onnxruntime, grpc": "import onnxruntime, grpc",
}


def ready_seconds(data: Path) -> dict[str, float]:
    """Starts a server and waits for its ready line, then stops it."""
    begun = time.perf_counter()
    with ServerProcess(BASE, serve(ROOT / "models", "--data-dir", str(data))):
        return {"ms": (time.perf_counter() - begun) * 1000}


def run_seconds(code: str) -> dict[str, float]:
    """Runs a line of Python in a process of its own."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return {"ms": (time.perf_counter() - begun) * 1000}


def main(rounds: Rounds = 7, quick: Quick = False) -> None:
    """Measure how long a server takes to be ready."""
    with Comparison(BASE, rounds, 0.0, 0.0, quick=quick) as compare:
        turns = {name: partial(run_seconds, code) for name, code in FLOORS.items()}
        turns[BASE] = partial(ready_seconds, compare.folder / "data")
        compare.case("from exec to ready", turns, {"ms": "ms"})


if __name__ == "__main__":
    typer.run(main)
