"""Measures how long a server takes to be ready: from its start as a process to its ready line, with the committed model.

python benchmarks/ready.py [--rounds 7] [--quick]

Beside it what it cannot be faster than: Python that does nothing, and Python that imports what the server stands on.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from compare import Quick, Rounds, make_table
from machine import ROOT, facts, load_average
from rich.console import Console
from rounds import Results, Sample, interleave
from side import Side, serve

BASE = "tidegate"
FLOORS = {
    "python -c pass": "pass",
    "import onnxruntime, grpc": "import onnxruntime, grpc",
}
CASE = "from exec to ready"
COLUMNS = {"ms": "ms"}


def ready_seconds(data: Path) -> float:
    """Starts a server and waits for its ready line, then stops it."""
    begun = time.perf_counter()
    with Side(BASE, serve(ROOT / "models", "--data-dir", str(data))):
        return time.perf_counter() - begun


def run_seconds(code: str) -> float:
    """Runs a line of Python in a process of its own."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return time.perf_counter() - begun


def main(
    rounds: Rounds = 7,
    quick: Quick = False,
) -> None:
    """Measure how long a server takes to be ready."""
    if quick:
        rounds = 1
    results = Results()
    console = Console()
    sides = [*FLOORS, BASE]
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        for number, side in interleave(rounds, sides):
            seconds = run_seconds(FLOORS[side]) if side in FLOORS else ready_seconds(Path(folder) / "data")
            results.add(Sample(CASE, number, side, load_average(), {"ms": seconds * 1000}))
    console.print(make_table(results, CASE, sides, BASE, COLUMNS))
    console.print(", ".join(f"{name} {value}" for name, value in facts().items()))


if __name__ == "__main__":
    typer.run(main)
