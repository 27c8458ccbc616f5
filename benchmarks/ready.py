"""Measures the start of a server: from the start of the process to the ready line, with the committed model, and with more of it.

python benchmarks/ready.py [--rounds 7] [--quick]

It is compared with its lower limits: Python that does nothing, and Python that imports the same libraries.
"""

import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import typer
from compare import Comparison, Quick, Rounds
from machine import ROOT
from server_process import ServerProcess, serve

BASE = "tidegate"
FLOORS = {
    "python -c pass": "pass",
    "import onnxruntime, grpc": "import onnxruntime, grpc",
}


TEN = "ten models, {} workers"
FIRST = "ten models, 2 workers, never tried before"
VERSIONS = "thirty versions of a model, 1 worker"


def ready_seconds(data: Path, models: Path = ROOT / "models", *options: str) -> dict[str, float]:
    """Starts a server, waits for its ready line, and stops it."""
    begun = time.perf_counter()
    with ServerProcess(BASE, serve(models, "--data-dir", str(data), *options)):
        return {"ms": (time.perf_counter() - begun) * 1000}


def run_seconds(code: str) -> dict[str, float]:
    """Runs a line of Python in a new process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return {"ms": (time.perf_counter() - begun) * 1000}


def main(rounds: Rounds = 7, quick: Quick = False) -> None:
    """Measure the start of a server."""
    with Comparison(BASE, rounds, 0.0, 0.0, quick=quick) as compare:
        turns = {name: partial(run_seconds, code) for name, code in FLOORS.items()}
        turns[BASE] = partial(ready_seconds, compare.folder / "data")
        for number in range(10):
            shutil.copytree(ROOT / "models" / "appliances", compare.folder / "ten" / f"model-{number}")
        for workers in ("1", "2"):
            turns[TEN.format(workers)] = partial(
                ready_seconds, compare.folder / "data", compare.folder / "ten", "--workers", workers
            )
        for number in range(1, 31):
            shutil.copytree(
                ROOT / "models" / "appliances" / "1", compare.folder / "versions" / "appliances" / str(number)
            )
        turns[VERSIONS] = partial(ready_seconds, compare.folder / "data", compare.folder / "versions")
        # Each time with a folder for data that knows no model.
        turns[FIRST] = lambda: ready_seconds(
            Path(mkdtemp(dir=compare.folder)), compare.folder / "ten", "--workers", "2"
        )
        compare.case("from exec to ready", turns, {"ms": "ms"})


if __name__ == "__main__":
    typer.run(main)
