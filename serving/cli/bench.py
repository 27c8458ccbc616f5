"""`tidegate bench`: puts load on a server and reports the result."""

import asyncio
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from tidegate.cli.connection import Address, unavailable
from tidegate.cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from tidegate.cli.options import ModelName, ModelVersion
from tidegate.cli.outputs import check_outputs, replacing, require_matplotlib

if TYPE_CHECKING:
    from tidegate.bench.plan import Plan
    from tidegate.bench.result import Result
    from tidegate.client import Model
    from tidegate.core.spec import Floats


def option(name: str, about: str, *flags: str, metavar: str | None = None) -> Any:
    """An option with the environment variable TIDEGATE_BENCH_NAME."""
    return typer.Option(*flags, envvar=f"TIDEGATE_BENCH_{name}", help=about, metavar=metavar)


CLIENT = (
    "light: a light HTTP/2 client, so that the server is the bottleneck. "
    "python: `tidegate.client` in a closed loop, which is what a Python program gets."
)
RATE = (
    "Timesteps per second over all streams, independent of the answers (open loop). "
    "Left out: a stream sends its next timestep when it has an answer (closed loop)."
)
VALUES = (
    "CSV with a column for each feature. Its first 65,536 rows are sent in a loop. "
    "Left out: random values within the training ranges."
)


def bench(
    address: Address = "",
    model: ModelName = "",
    version: ModelVersion = "",
    client: Annotated[str, option("CLIENT", CLIENT)] = "light",
    streams: Annotated[int, option("STREAMS", "Streams in total.")] = 128,
    processes: Annotated[int, option("PROCESSES", "Client processes.")] = 2,
    connections: Annotated[int, option("CONNECTIONS", "Connections of each process.")] = 2,
    rate: Annotated[float | None, option("RATE", RATE)] = None,
    arrivals: Annotated[str, option("ARRIVALS", "With --rate: constant or poisson.")] = "constant",
    seconds: Annotated[float, option("SECONDS", "Seconds of the measurement.")] = 10.0,
    warmup: Annotated[float, option("WARMUP", "Seconds of load before the measurement.")] = 2.0,
    think: Annotated[float, option("THINK", "Without --rate: seconds between an answer and the next timestep.")] = 0.0,
    block: Annotated[
        int | None, option("BLOCK", "Streams per call, and rows per message, of PredictBlocks. Left out: Predict.")
    ] = None,
    unary: Annotated[
        bool, option("UNARY", "With --client python: one call of PredictOne per timestep.", "--unary")
    ] = False,
    ahead: Annotated[int, option("AHEAD", "Without --rate: messages in flight on a call.")] = 1,
    values: Annotated[Path | None, option("VALUES", VALUES)] = None,
    missing: Annotated[float, option("MISSING", "Share of random values that are missing.")] = 0.0,
    metrics: Annotated[
        str | None, option("METRICS", "The server's /metrics, to report its CPU time and latencies.", metavar="URL")
    ] = None,
    json: Annotated[Path | None, option("JSON", "Write the result as JSON.")] = None,
    png: Annotated[Path | None, option("PNG", "Write a plot as PNG.")] = None,
    seed: Annotated[int, option("SEED", "Seed of values and arrivals.")] = 0,
) -> None:
    """Put load on a server and measure latency, throughput and cost.

    The streams are new and are deleted at the end. Ctrl-C ends early and reports what was measured.
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

    from tidegate.bench.plan import Plan

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
    if png is not None:
        require_matplotlib("--png")
    check_outputs(json, png)


def _fetch_model(plan: "Plan") -> "Model":
    """Asks the server for the model."""
    from tidegate.client import Client, ClientError, ServerUnavailable

    async def fetch() -> "Model":
        async with Client(plan.address) as client:
            model, _ = await client.describe(plan.model, plan.version)
            return model

    try:
        return asyncio.run(fetch())
    except ServerUnavailable as error:
        raise unavailable(plan.address, error) from None
    except ClientError as error:
        raise CommandError(str(error), EXIT_USAGE) from None


def _load_values(plan: "Plan", path: Path | None, model: "Model") -> "Floats":
    """Returns the values that the streams send."""
    import numpy as np

    from tidegate.bench.values import FILE_ROWS_MAX, random_values
    from tidegate.cli.sensor_table import InvalidTable, check_inputs, read_table

    try:
        check_inputs(f"{model.name}/{model.version}", model.inputs_by_name)
    except InvalidTable as error:
        raise CommandError(str(error), EXIT_USAGE) from None
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

    from tidegate.bench.processes import ClientProcesses, ClientProcessFailed
    from tidegate.bench.result import ServedModel
    from tidegate.bench.run import BenchFailed, BenchRun, Interrupted
    from tidegate.bench.scrape import ScrapeFailed, scrape

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

    from tidegate.bench.display import print_result

    print_result(Console(), result)
    if json is not None:
        with replacing(json) as new:
            new.write_text(result.model_dump_json(indent=2) + "\n", "utf-8")
    if png is not None:
        from tidegate.bench.plot import save_plot  # needs matplotlib, an optional dependency

        with replacing(png) as new:
            save_plot(result, new)
