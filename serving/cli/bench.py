"""`tidegate bench`: puts load on a server and reports the result."""

import asyncio
import importlib.util
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from serving.cli.connection import Address
from serving.cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from serving.cli.options import ModelName, ModelVersion

if TYPE_CHECKING:
    from serving.bench.plan import Plan
    from serving.bench.result import Result
    from serving.client import Model
    from serving.core.spec import Floats


def bench(
    address: Address = "",
    model: ModelName = "",
    version: ModelVersion = "",
    client: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_BENCH_CLIENT",
            help="light: HTTP/2 frames made by hand, cheap enough that it is the server that is measured. python: the client"
            " that users have, `serving.client`, as they would call it, in a closed loop: what a program in Python gets.",
        ),
    ] = "light",
    streams: Annotated[int, typer.Option(envvar="TIDEGATE_BENCH_STREAMS", help="Streams, all together.")] = 128,
    processes: Annotated[int, typer.Option(envvar="TIDEGATE_BENCH_PROCESSES", help="Client processes.")] = 2,
    connections: Annotated[
        int, typer.Option(envvar="TIDEGATE_BENCH_CONNECTIONS", help="Connections of each process.")
    ] = 2,
    rate: Annotated[
        float | None,
        typer.Option(
            envvar="TIDEGATE_BENCH_RATE",
            help="Timesteps a second over all streams, whatever the server does (open loop). Left out: each stream sends"
            " its next when it has its answer (closed loop).",
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(envvar="TIDEGATE_BENCH_ARRIVALS", help="With --rate: constant or poisson.")
    ] = "constant",
    seconds: Annotated[float, typer.Option(envvar="TIDEGATE_BENCH_SECONDS", help="Seconds that are measured.")] = 10.0,
    warmup: Annotated[float, typer.Option(envvar="TIDEGATE_BENCH_WARMUP", help="Seconds of load before them.")] = 2.0,
    think: Annotated[
        float,
        typer.Option(
            envvar="TIDEGATE_BENCH_THINK", help="Without --rate: seconds between an answer and the next timestep."
        ),
    ] = 0.0,
    block: Annotated[
        int | None,
        typer.Option(
            envvar="TIDEGATE_BENCH_BLOCK", help="Streams a call, and rows a message: PredictBlocks. Left out: Predict."
        ),
    ] = None,
    unary: Annotated[
        bool,
        typer.Option(
            "--unary", envvar="TIDEGATE_BENCH_UNARY", help="With --client python: a call a timestep, PredictOne."
        ),
    ] = False,
    ahead: Annotated[
        int, typer.Option(envvar="TIDEGATE_BENCH_AHEAD", help="Without --rate: messages under way on a call.")
    ] = 1,
    values: Annotated[
        Path | None,
        typer.Option(
            envvar="TIDEGATE_BENCH_VALUES",
            help="CSV with a column for each feature; its first 65,536 rows are sent round and round. Left out: random ones,"
            " within the training ranges.",
        ),
    ] = None,
    missing: Annotated[
        float, typer.Option(envvar="TIDEGATE_BENCH_MISSING", help="Share of random values that are missing.")
    ] = 0.0,
    metrics: Annotated[
        str | None,
        typer.Option(
            envvar="TIDEGATE_BENCH_METRICS", metavar="URL", help="The server's /metrics, for what it says of itself."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(envvar="TIDEGATE_BENCH_JSON", help="Write all figures as JSON.")] = None,
    png: Annotated[Path | None, typer.Option(envvar="TIDEGATE_BENCH_PNG", help="Write a picture as PNG.")] = None,
    seed: Annotated[int, typer.Option(envvar="TIDEGATE_BENCH_SEED", help="Of values and arrivals.")] = 0,
) -> None:
    """Put load on a server and measure latency, throughput and cost.

    The streams are new ones and are forgotten at the end. Ctrl-C ends early and reports what was measured.
    """
    plan = _make_plan(locals())
    _check_options(values, missing, metrics, json, png)
    result = _run(plan, values, metrics)
    _write_report(result, json, png)
    if result.failures:
        raise typer.Exit(EXIT_FAILURE)


def _make_plan(given: dict[str, Any]) -> "Plan":
    """Makes the plan from the options. A bad option ends the command with exit code 2."""
    from pydantic import ValidationError

    from serving.bench.plan import Plan

    try:
        return Plan(**{name: given[name] for name in Plan.model_fields})  # the options have the names of the fields
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise CommandError(str(first["ctx"]["error"]), EXIT_USAGE) from None
        raise CommandError(f"--{first['loc'][0]}: got {first['input']!r}: {first['msg']}", EXIT_USAGE) from None


def _check_options(
    values: Path | None, missing: float, metrics: str | None, json: Path | None, png: Path | None
) -> None:
    """Checks the options that would otherwise fail after the load."""
    if values is not None and missing:
        raise CommandError("--missing: cannot be used with --values; leave one of them out", EXIT_USAGE)
    if metrics is not None and (urlsplit(metrics).scheme not in ("http", "https") or not urlsplit(metrics).hostname):
        raise CommandError(
            f"--metrics: got '{metrics}', expected a URL such as http://localhost:9464/metrics", EXIT_USAGE
        )
    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--png needs matplotlib: install tidegate with its extra, tidegate[plot]", EXIT_USAGE)
    for path in (json, png):
        if path is not None:
            _check_writable(path)


def _check_writable(path: Path) -> None:
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}", EXIT_USAGE) from None


def _fetch_model(plan: "Plan") -> "Model":
    """Asks the server for the model."""
    from serving.client import Client, ClientError, ServerUnavailable

    async def fetch() -> "Model":
        async with Client(plan.address) as client:
            model, _ = await client.describe(plan.model, plan.version)
            return model

    try:
        return asyncio.run(fetch())
    except ServerUnavailable as error:
        raise CommandError(f"server {plan.address} is not available: {error}", EXIT_FAILURE) from None
    except ClientError as error:
        raise CommandError(str(error), EXIT_USAGE) from None


def _load_values(plan: "Plan", path: Path | None, model: "Model") -> "Floats":
    """Returns the values that the streams send."""
    import numpy as np

    from serving.bench.values import FILE_ROWS_MAX, random_values
    from serving.cli.sensor_table import InvalidTable, read_table

    if plan.missing and not model.handles_missing:
        raise CommandError(f"--missing: model {model.name}/{model.version} does not accept missing values", EXIT_USAGE)
    if path is None:
        return random_values(model, plan.missing, plan.seed)
    try:
        values = read_table(path, [feature.name for feature in model.features]).values[:FILE_ROWS_MAX]
    except InvalidTable as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    if not model.handles_missing and np.isnan(values).any():
        row = int(np.isnan(values).any(axis=1).argmax()) + 1
        raise CommandError(
            f"{path}: row {row} has a missing value, but model {model.name}/{model.version} accepts none", EXIT_USAGE
        )
    return values


def _run(plan: "Plan", path: Path | None, metrics: str | None) -> "Result":
    """Runs the bench."""
    from rich.console import Console

    from serving.bench.processes import ClientProcesses, ClientProcessFailed
    from serving.bench.result import ServedModel
    from serving.bench.run import BenchFailed, BenchRun, Interrupted
    from serving.bench.scrape import ScrapeFailed, scrape

    model = _fetch_model(plan)
    values = _load_values(plan, path, model)
    prefix = f"bench-{secrets.token_hex(4)}-"
    served = ServedModel(
        name=model.name, version=model.version, fingerprint=model.fingerprint, features=len(model.features)
    )
    read = None if metrics is None else lambda: scrape(metrics, model.name, model.version)
    with _catch_interrupts() as stopped:
        try:
            run = BenchRun(plan, served, values, prefix, read, Console(stderr=True))
            with ClientProcesses(len(plan.calls_by_process), stopped) as processes:
                return run.run(processes)
        except Interrupted as error:
            raise CommandError(str(error), EXIT_INTERRUPTED) from None
        except (BenchFailed, ClientProcessFailed, ScrapeFailed) as error:
            raise CommandError(str(error), EXIT_FAILURE) from None


@contextmanager
def _catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed. The second Ctrl-C ends the program."""
    interrupted = False

    def on_interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _write_report(result: "Result", json: Path | None, png: Path | None) -> None:
    """Prints the tables and writes the files."""
    from rich.console import Console

    from serving.bench.display import print_result

    print_result(Console(), result)
    if json is not None:
        json.write_text(result.model_dump_json(indent=2) + "\n", "utf-8")
    if png is not None:
        from serving.bench.plot import save_plot  # needs matplotlib, an optional dependency

        save_plot(result, png)
