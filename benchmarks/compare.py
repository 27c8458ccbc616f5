"""Runs servers in turn under the same load and prints one table: the basis of most benchmarks.

The load generator is that of `tidegate bench`, with the same client processes for every server.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import numpy as np
import typer
from machine import ROOT, describe_machine, facts, load_average
from model import FEATURES
from rich.console import Console
from rich.table import Table
from rounds import Results, Sample, interleave
from server_process import ServerProcess

from tidegate.bench.plan import Plan
from tidegate.bench.processes import ARGUMENTS, ClientProcesses
from tidegate.bench.result import Result, ServedModel
from tidegate.bench.run import BenchRun
from tidegate.bench.scrape import CounterSnapshot

Rounds = Annotated[int, typer.Option(min=1, help="Number of rounds: each side runs once per round.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Seconds of a turn, without the warm-up.")]
Warmup = Annotated[float, typer.Option(min=0.0, help="Seconds of warm-up before each turn.")]
Streams = Annotated[int, typer.Option(min=1, help="Number of streams.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Only check that it runs: the numbers mean nothing, and no goal is checked.")
]
Before = Annotated[Path | None, typer.Option("--before", help="Another checkout of the repository.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Write all measurements as JSON.")]

COLUMNS = {
    "steps_per_s": "steps/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "server_cpu_us": "server CPU µs/step",
    "client_cpu_us": "client CPU µs/step",
}
# The width of a table with ratios, also in a file.
WIDTH_MIN = 120
HERE = Path(__file__).resolve().parent
SERVED = ServedModel(name="bench", version="1", fingerprint="", features=FEATURES)
VALUES = np.random.default_rng(0).normal(size=(4096, FEATURES)).astype(np.float32)
# With more connections the kernel needs a larger share of the CPU: timesteps that are sent together share packets.
CONNECTIONS = 4


class LoadProcesses(ClientProcesses):
    """The client processes of the load generator.

    Args:
        clients: the number of processes.
        arguments: what Python runs.
        import_paths: where they find their imports.
    """

    def __init__(
        self, clients: int = 1, *, arguments: Sequence[str] = ARGUMENTS, import_paths: Sequence[Path] = (ROOT, HERE)
    ) -> None:
        super().__init__(clients, arguments=arguments, import_paths=import_paths)
        self._clients = clients
        self._runs = 0

    def run(self, side: ServerProcess, *, make_encoding: Any = None, **plan: Any) -> Result:
        """Runs one load, as `Plan` describes it. Raises RuntimeError when a stream or a timestep failed."""
        plan_settings = Plan(address=side.address, processes=self._clients, **{"connections": CONNECTIONS, **plan})
        self._runs += 1

        def read() -> CounterSnapshot:
            return CounterSnapshot(time.monotonic(), side.cpu_seconds())

        run = BenchRun(plan_settings, SERVED, VALUES, f"bench-{self._runs}-", read, Console(quiet=True), make_encoding)
        result = run.run(self)
        if result.failures or not result.timesteps.answered:
            problems = "; ".join([*result.failures, *result.warnings])
            raise RuntimeError(f"side '{side.name}' answered {result.timesteps.answered:,} timesteps: {problems}")
        return result


def figures(result: Result) -> dict[str, float]:
    """Returns the numbers of one turn. Unknown latencies are left out."""
    answered, server = result.timesteps.answered, result.server
    values = {
        "steps_per_s": result.achieved_per_s,
        "p50_us": result.latency.p50 and result.latency.p50 * 1e6,
        "p99_us": result.latency.p99 and result.latency.p99 * 1e6,
        "server_cpu_us": server and server.busy * server.seconds / answered * 1e6,
        "client_cpu_us": result.clients.cpu_s_per_step and result.clients.cpu_s_per_step * 1e6,
    }
    return {name: value for name, value in values.items() if value is not None}


class Comparison(ExitStack):
    """Servers ("sides") that are measured in turn. Leaving the context stops them and prints the machine.

    Args:
        base: the side that the others are compared with.
        rounds: the number of rounds.
        seconds: of a turn.
        warmup: seconds before a turn.
        quick: whether only to check that it runs.
        clients: the number of client processes.
        json_path: where to write all measurements.
    """

    def __init__(
        self,
        base: str,
        rounds: int,
        seconds: float,
        warmup: float,
        *,
        quick: bool,
        clients: int = 1,
        json_path: Path | None = None,
    ) -> None:
        super().__init__()
        self.rounds, self.seconds, self.warmup = (1, 0.3, 0.1) if quick else (rounds, seconds, warmup)
        self.results = Results()
        self.sides: list[ServerProcess] = []
        self.console = Console(width=max(WIDTH_MIN, Console().width))
        self.folder: Path
        self._base = base
        self._load = LoadProcesses(clients)
        self._json_path = json_path

    def __enter__(self) -> Self:
        self.folder = Path(self.enter_context(TemporaryDirectory(prefix="tidegate-bench-")))
        self.enter_context(self._load)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if kind is None:
            self._end()

    def start(self, *sides: ServerProcess) -> None:
        """Starts sides. They are measured in this order."""
        self.sides += [self.enter_context(side) for side in sides]

    def measure(self, side: ServerProcess, load: LoadProcesses | None = None, **plan: Any) -> dict[str, float]:
        """Measures one turn."""
        return figures((load or self._load).run(side, **{"seconds": self.seconds, "warmup": self.warmup, **plan}))

    def add(self, case: str, number: int, side: str, measured: dict[str, float]) -> None:
        """Adds the measurement of one turn."""
        self.results.add(Sample(case, number, side, load_average(), measured))

    def case(
        self,
        title: str,
        turns: Mapping[str, Callable[[], dict[str, float]]] | None = None,
        columns: Mapping[str, str] = COLUMNS,
        **plan: Any,
    ) -> None:
        """Measures a case and prints its table: first the entries of `turns`, then the sides under the load."""
        everyone = {**(turns or {}), **{side.name: partial(self.measure, side, **plan) for side in self.sides}}
        for number, name in interleave(self.rounds, list(everyone)):
            self.add(title, number, name, everyone[name]())
        self.console.print(make_table(self.results, title, list(everyone), self._base, columns))

    def _end(self) -> None:
        self.console.print(describe_machine())
        if self._json_path is not None:
            settings = {"rounds": self.rounds, "seconds": self.seconds, "warmup": self.warmup}
            report = {"machine": facts(), "settings": settings, "base": self._base, "samples": self.results.as_json()}
            self._json_path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def check_checkout(folder: Path) -> Path:
    """The absolute path of a checkout. Raises BadParameter when it is none: else what is installed here would be measured."""
    folder = folder.resolve()
    if not (folder / "src" / "tidegate").is_dir():
        raise typer.BadParameter(f"--before: {folder} has no folder src/tidegate, expected a checkout that has one")
    return folder


def many(count: int) -> str:
    """Formats a number of streams."""
    return f"{count:,} stream{'' if count == 1 else 's'}"


def make_table(results: Results, case: str, sides: Sequence[str], base: str, columns: Mapping[str, str]) -> Table:
    """Makes the table of one case: medians, and in brackets the median ratio to the base in the same round.

    `columns` has the title of each number. A missing number is shown as a dash.
    """
    table = Table(title=case, title_justify="left")
    table.add_column("side")
    for title in columns.values():
        table.add_column(title, justify="right")
    for side in sides:
        table.add_row(side, *(_cell(results, case, side, base, figure) for figure in columns))
    return table


def _cell(results: Results, case: str, side: str, base: str, figure: str) -> str:
    value = results.median(case, side, figure)
    ratio = results.ratio(case, side, base, figure)
    if value is None:
        return "–"
    return shown(value) if ratio is None or side == base else f"{shown(value)} ({ratio:.2f})"


def shown(value: float) -> str:
    """Formats a number with about three significant digits."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
