"""Sides in turn under the same load, and one table of what was seen: what nearly every benchmark here is.

The load is that of `tidegate bench`, `serving.bench`: the same client processes for every side.
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
from machine import ROOT, facts, load_average
from model import FEATURES
from rich.console import Console
from rich.table import Table
from rounds import Results, Sample, interleave
from server_process import ServerProcess

from serving.bench.plan import Plan
from serving.bench.processes import ARGUMENTS, ClientProcesses
from serving.bench.result import Result, ServedModel
from serving.bench.run import BenchRun
from serving.bench.scrape import CounterSnapshot

Rounds = Annotated[int, typer.Option(min=1, help="How often each side has its turn.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Length of a turn, without warm-up.")]
Warmup = Annotated[float, typer.Option(min=0.0, help="Seconds before each turn that are not counted.")]
Streams = Annotated[int, typer.Option(min=1, help="Streams at once.")]
Quick = Annotated[bool, typer.Option("--quick", help="Only sees that it runs; no figures to quote, nothing is judged.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Where to write everything that was measured.")]

COLUMNS = {
    "steps_per_s": "steps/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "server_cpu_us": "server CPU µs/step",
    "client_cpu_us": "client CPU µs/step",
}
# Of a table with its ratios, also where the output is a file.
WIDTH_MIN = 120
HERE = Path(__file__).resolve().parent
SERVED = ServedModel(name="bench", version="1", fingerprint="", features=FEATURES)
VALUES = np.random.default_rng(0).normal(size=(4096, FEATURES)).astype(np.float32)
# On more connections than this the kernel's share grows instead of ours: steps that are sent together share packets.
CONNECTIONS = 4


class LoadProcesses(ClientProcesses):
    """The client processes.

    Args:
        clients: how many.
        arguments: what Python runs.
        import_paths: where they find what they import.

    """

    def __init__(
        self, clients: int = 1, *, arguments: Sequence[str] = ARGUMENTS, import_paths: Sequence[Path] = (ROOT, HERE)
    ) -> None:
        super().__init__(clients, arguments=arguments, import_paths=import_paths)
        self._clients = clients
        self._runs = 0

    def run(self, side: ServerProcess, *, make_encoding: Any = None, **plan: Any) -> Result:
        """One load on one side, as `Plan` has it; raises RuntimeError when a stream or a timestep failed."""
        plan_settings = Plan(address=side.address, processes=self._clients, **{"connections": CONNECTIONS, **plan})
        self._runs += 1

        def read() -> CounterSnapshot:
            return CounterSnapshot(time.monotonic(), side.cpu_seconds())

        run = BenchRun(plan_settings, SERVED, VALUES, f"bench-{self._runs}-", read, Console(quiet=True), make_encoding)
        result = run.run(self)
        if result.failures or not result.timesteps.answered:
            said = "; ".join([*result.failures, *result.warnings])
            raise RuntimeError(f"side '{side.name}' answered {result.timesteps.answered:,} timesteps: {said}")
        return result


def figures(result: Result) -> dict[str, float]:
    """What is told of one turn; a latency that is not known is left out."""
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
    """Sides, their turns, and what was seen; leaving the context stops the sides and says what machine it was.

    Args:
        base: the side that the others are compared with.
        rounds: how often each has its turn.
        seconds: of a turn.
        warmup: seconds before it.
        quick: whether it is only to be seen that it runs.
        clients: processes.
        json_path: where to write everything.

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
        """Starts sides; they have their turns in this order."""
        self.sides += [self.enter_context(side) for side in sides]

    def measure(self, side: ServerProcess, load: LoadProcesses | None = None, **plan: Any) -> dict[str, float]:
        """One turn."""
        return figures((load or self._load).run(side, **{"seconds": self.seconds, "warmup": self.warmup, **plan}))

    def add(self, case: str, number: int, side: str, measured: dict[str, float]) -> None:
        """Keeps what was seen of a turn."""
        self.results.add(Sample(case, number, side, load_average(), measured))

    def case(
        self,
        title: str,
        turns: Mapping[str, Callable[[], dict[str, float]]] | None = None,
        columns: Mapping[str, str] = COLUMNS,
        **plan: Any,
    ) -> None:
        """Runs a case, first those of `turns` and then the sides under a load, and prints its table."""
        everyone = {**(turns or {}), **{side.name: partial(self.measure, side, **plan) for side in self.sides}}
        for number, name in interleave(self.rounds, list(everyone)):
            self.add(title, number, name, everyone[name]())
        self.console.print(make_table(self.results, title, list(everyone), self._base, columns))

    def _end(self) -> None:
        values = facts()
        self.console.print(", ".join(f"{name} {value}" for name, value in values.items()))
        if self._json_path is not None:
            settings = {"rounds": self.rounds, "seconds": self.seconds, "warmup": self.warmup}
            report = {"machine": values, "settings": settings, "base": self._base, "samples": self.results.as_json()}
            self._json_path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def many(count: int) -> str:
    """So many streams, in words."""
    return f"{count:,} stream{'' if count == 1 else 's'}"


def make_table(results: Results, case: str, sides: Sequence[str], base: str, columns: Mapping[str, str]) -> Table:
    """One case: the medians, and in brackets the median ratio to the base in the same round.

    `columns` gives the title of each figure; a side that lacks one has a dash there.
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
    """A figure with three digits or more, and no more behind the point than it is good for."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
