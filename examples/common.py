"""What the examples share: commands that are printed before they run, a server, a table's rows, checks.

Every example is a script to read from top to bottom. It ends with exit code 1 when something that it shows does not hold.
"""

import argparse
import csv
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from tidegate.training.data.series import Floats
from tidegate.training.judging.graph import Graph

SECONDS_TO_START = 30
SECONDS_TO_STOP = 30

# As wide as what it prints: a terminal may be narrower, a file has no width at all.
console = Console(highlight=False, width=100)


@dataclass(frozen=True)
class Given:
    """What an example was started with: the folder for all that it makes, and whether it should be done in half a minute."""

    folder: Path
    quick: bool

    @property
    def models(self) -> Path:
        """The folder of models."""
        return self.folder / "models"


def given(doc: str, name: str) -> Given:
    """Read `--folder` and `--quick`, and make the folder.

    Args:
        doc: what the example says of itself.
        name: of the example, which has its own folder under `demo/`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo") / name, help=f"default: demo/{name}")
    parser.add_argument(
        "--quick",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="learn for seconds only; so where CI=true",
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    return Given(arguments.folder, arguments.quick)


def title(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{text}[/]")


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True, markup=False)


def tidegate(*words: object) -> list[str]:
    """A command line of `tidegate`, which is printed."""
    console.print(f"[dim]$ tidegate {shlex.join(str(word) for word in words)}[/]", soft_wrap=True)
    return [sys.executable, "-m", "tidegate", *(str(word) for word in words)]


def run(*words: object) -> None:
    """Run a command; end the example with its exit code if it fails."""
    code = subprocess.run(tidegate(*words), check=False).returncode
    if code:
        sys.exit(code)


def next_version(model: Path) -> int:
    """The first version number that is not taken: an example may run twice."""
    taken = [int(path.name) for path in model.glob("*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


@contextmanager
def serving(models: Path, data: Path) -> Iterator[tuple[str, str]]:
    """A server on free ports: its address, and the address of its metrics."""
    command = tidegate(
        "serve", "--models", models, "--data-dir", data, "--host", "127.0.0.1", "--port", 0, "--metrics-port", 0
    )
    with subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                sys.exit(process.wait(SECONDS_TO_START))
            say(line.strip())
            facts = dict(word.split("=", 1) for word in line.split()[1:])
            yield facts["grpc"], facts["metrics"]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(SECONDS_TO_STOP)
    if code:
        say(f"The server ended with exit code {code}, expected 0.")
        sys.exit(1)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names in its header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> Floats:
    """(rows, names) as a model wants its timesteps; an empty cell is a missing value."""
    return np.array([[float(row[name] or "nan") for name in names] for row in rows], np.float32)


def check(claim: str, *, holds: bool) -> None:
    """Print a claim and whether it holds; end the example if it does not."""
    console.print(f"{'[green]holds[/]' if holds else '[red]FAILS[/]'}  {claim}", soft_wrap=True)
    if not holds:
        sys.exit(1)


def same_bits(model: Path, x: Floats, served: Mapping[str, Floats]) -> bool:
    """Whether what was served is what the exported graph says by itself, to the last bit.

    Args:
        model: the version's folder.
        x: (time, features) what was streamed.
        served: the outputs by name, each (time, ...).
    """
    alone, _ = Graph.load(model).replay(x[:, None])
    return served.keys() == alone.keys() and all(
        np.array_equal(served[name].view(np.uint32), alone[name][:, 0].view(np.uint32)) for name in alone
    )
