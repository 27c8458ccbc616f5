"""The command line, `tidegate`.

Exit codes: 0 a clean end, 1 the answer is no (not healthy, connection lost), 2 bad usage or input, 3 the server could not
start. Errors are one line on stderr; a traceback is always our own bug.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from serving.cli import bench, conformance, streams
from serving.cli.address import Server, asks_server
from serving.cli.refused import EXIT_INTERRUPTED, EXIT_NO, EXIT_START, EXIT_USAGE, Refused

if TYPE_CHECKING:
    from serving.client import Model  # loaded by the command that asks
    from serving.runtime.config import ServerConfig

TRAINING_COMMANDS = {
    "train": "Learn a model from a sensor series.",
    "backtest": "Learn from an ever longer past and judge what follows, several times.",
    "tune": "Search for good settings of a model.",
    "evaluate": "Score an exported model beside the baselines.",
    "export": "Write a trained run as a model that can be served.",
    "report": "Write the page that says how good a model is.",
    "datasets": "List the named data sets, with source and licence.",
}

app = typer.Typer(
    help="Train recurrent models on sensor series and serve them, one timestep at a time.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.add_typer(streams.app, name="streams")
app.command("bench")(bench.bench)
app.command("conformance")(conformance.conformance)


@app.command()
def serve(
    models: Annotated[
        Path, typer.Option(envvar="TIDEGATE_MODELS", help="Folder of <name>/<version>/model.onnx.")
    ] = Path("models"),
    host: Annotated[
        str, typer.Option(envvar="TIDEGATE_HOST", help="Name or address to listen on, or unix:PATH.")
    ] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(envvar="TIDEGATE_PORT", help="Port of gRPC; 0 picks a free one.")] = 50051,
    metrics_port: Annotated[
        int, typer.Option(envvar="TIDEGATE_METRICS_PORT", help="Port of /metrics; 0 picks a free one.")
    ] = 9464,
    metrics_host: Annotated[
        str, typer.Option(envvar="TIDEGATE_METRICS_HOST", help="Address of /metrics; empty: that of --host.")
    ] = "",
    batch_max: Annotated[int, typer.Option(envvar="TIDEGATE_BATCH_MAX", help="Most timesteps in a batch.")] = 256,
    queue_max: Annotated[
        int, typer.Option(envvar="TIDEGATE_QUEUE_MAX", help="Most timesteps waiting for a batch.")
    ] = 4096,
    live_max: Annotated[
        int, typer.Option(envvar="TIDEGATE_LIVE_MAX", help="Most live streams of a model, in each worker.")
    ] = 16384,
    peer_live_max: Annotated[
        int,
        typer.Option(
            envvar="TIDEGATE_PEER_LIVE_MAX",
            help="Most live streams of a model over one connection; 0: seven eighths of --live-max.",
        ),
    ] = 0,
    streams_max: Annotated[
        int, typer.Option(envvar="TIDEGATE_STREAMS_MAX", help="Most streams, live and parked.")
    ] = 1_000_000,
    answers_remembered: Annotated[
        int, typer.Option(envvar="TIDEGATE_ANSWERS_REMEMBERED", help="Answers kept of each stream for repeats.")
    ] = 32,
    message_bytes_max: Annotated[
        int, typer.Option(envvar="TIDEGATE_MESSAGE_BYTES_MAX", help="Longest message that is read.")
    ] = 4 * 1024 * 1024,
    drain_after: Annotated[
        str, typer.Option(envvar="TIDEGATE_DRAIN_AFTER", help="Longest time that stopping may take.")
    ] = "20s",
    state: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_STATE",
            help="Where streams rest: sqlite:///PATH, redis://HOST:PORT/DB or memory:. Empty: SQLite in --data-dir.",
        ),
    ] = "",
    data_dir: Annotated[
        Path, typer.Option(envvar="TIDEGATE_DATA_DIR", help="Folder for what the server writes.")
    ] = Path("data"),
    checkpoint_every: Annotated[
        str, typer.Option(envvar="TIDEGATE_CHECKPOINT_EVERY", help="How often state is stored.")
    ] = "200ms",
    park_after: Annotated[
        str, typer.Option(envvar="TIDEGATE_PARK_AFTER", help="Silence after which an open stream leaves memory.")
    ] = "60s",
    forget_after: Annotated[
        str,
        typer.Option(envvar="TIDEGATE_FORGET_AFTER", help="Silence after which a stream is forgotten; 0 for never."),
    ] = "7d",
    ready_lag: Annotated[
        str, typer.Option(envvar="TIDEGATE_READY_LAG", help="Unsaved for so long: the server says it is not ready.")
    ] = "5s",
    lag_max: Annotated[
        str, typer.Option(envvar="TIDEGATE_LAG_MAX", help="Unsaved for so long: new timesteps are refused.")
    ] = "30s",
    workers: Annotated[
        int, typer.Option(envvar="TIDEGATE_WORKERS", help="Processes that serve; 0: one a core that may be used.")
    ] = 0,
    log_level: Annotated[
        str, typer.Option(envvar="TIDEGATE_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Serve models over gRPC until SIGTERM or Ctrl-C, then drain."""
    from pydantic import ValidationError

    from serving.core.errors import ContractBroken
    from serving.runtime.config import ServerConfig
    from serving.runtime.crash_points import VARIABLE, arm
    from serving.runtime.descriptors import raise_limit
    from serving.runtime.lifecycle import StartFailed, StopFailed, open_standard_files
    from serving.runtime.log import start_log

    if log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise Refused(f"--log-level: got '{log_level}', expected debug, info, warning or error", EXIT_USAGE)
    open_standard_files()
    start_log(log_level.upper())
    raise_limit()
    try:
        arm(os.environ.get(VARIABLE, ""))
        # Durations are text until the config has read them.
        given: dict[str, Any] = {
            "models": models,
            "host": host,
            "port": port,
            "metrics_port": metrics_port,
            "metrics_host": metrics_host,
            "batch_max": batch_max,
            "queue_max": queue_max,
            "live_max": live_max,
            "peer_live_max": peer_live_max,
            "streams_max": streams_max,
            "answers_remembered": answers_remembered,
            "message_bytes_max": message_bytes_max,
            "drain_after": drain_after,
            "state": state,
            "data_dir": data_dir,
            "checkpoint_every": checkpoint_every,
            "park_after": park_after,
            "forget_after": forget_after,
            "ready_lag": ready_lag,
            "lag_max": lag_max,
            "workers": workers,
        }
        config = ServerConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise Refused(f"--{option}: got {first['input']!r}: {first['msg']}", EXIT_USAGE) from None
    except ValueError as error:
        raise Refused(str(error), EXIT_USAGE) from None
    try:
        if config.worker_count == 1:
            _serve_alone(config)
        else:
            _serve_with_workers(config, given, log_level.upper())
    except (ContractBroken, StartFailed) as error:
        raise Refused(str(error), EXIT_START) from None
    except StopFailed as error:
        raise Refused(str(error), EXIT_NO) from None


@app.command()
@asks_server
def stream(
    file: Annotated[Path, typer.Argument(help="CSV with a column for each feature of the model, rows in time order.")],
    *,
    server: Server,
    model: Annotated[str, typer.Option(envvar="TIDEGATE_MODEL", help="Model; empty for the only one.")] = "",
    version: Annotated[str, typer.Option(envvar="TIDEGATE_VERSION", help="Its version; empty for the newest.")] = "",
    stream_id: Annotated[
        str, typer.Option(envvar="TIDEGATE_STREAM_ID", help="Stream to begin or go on with; row n is its timestep n.")
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_GROUP",
            help="Column that says which of several series a row belongs to; each is a stream, named STREAM-ID-value.",
        ),
    ] = "",
    rate: Annotated[
        float, typer.Option(envvar="TIDEGATE_RATE", min=0, help="Timesteps a second; 0 as fast as it goes.")
    ] = 0.0,
    limit: Annotated[
        int, typer.Option(envvar="TIDEGATE_LIMIT", min=0, help="Only the first rows of a series; 0 for all.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(envvar="TIDEGATE_OUT", help="Write the predictions as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(envvar="TIDEGATE_PLOT", help="Write a picture as PNG.")] = None,
    scores: Annotated[Path | None, typer.Option(envvar="TIDEGATE_SCORES", help="Write the scores as JSON.")] = None,
) -> None:
    """Send a CSV file one timestep at a time and show predictions against what came true."""
    from serving.cli.replay import Replay, ReplayFailed
    from serving.cli.sheet import BadSheet
    from serving.client import ClientError, ServerUnavailable, StreamLost

    replay = Replay(
        file,
        server,
        model=model,
        version=version,
        stream_id=stream_id,
        group=group,
        rate=rate,
        limit=limit,
    )
    try:
        asyncio.run(replay.run(out=out, plot=plot, scores=scores))
    except (BadSheet, ReplayFailed) as error:
        raise Refused(str(error), EXIT_USAGE) from None
    except ServerUnavailable as error:
        raise Refused(f"server {server.address} is not available: {error}", EXIT_NO) from None
    except StreamLost as error:
        raise Refused(str(error), EXIT_NO) from None
    except ClientError as error:
        raise Refused(str(error), EXIT_USAGE) from None


@app.command()
@asks_server
def models(
    *,
    server: Server,
    as_json: Annotated[bool, typer.Option("--json", envvar="TIDEGATE_JSON", help="As JSON, for programs.")] = False,
) -> None:
    """List the models that a server serves."""
    from rich.console import Console
    from rich.table import Table

    from serving.client import ClientError, InvalidArgument

    async def ask() -> list["Model"]:
        async with server.client() as client:
            return await client.models()

    try:
        served = asyncio.run(ask())
    except InvalidArgument as error:
        raise Refused(str(error), EXIT_USAGE) from None
    except ClientError as error:
        raise Refused(f"server {server.address} is not available: {error}", EXIT_NO) from None
    if as_json:
        print(json.dumps([_describe(model) for model in served], indent=2))
        return
    table = Table("model", "version", "task", "every", "features", "outputs", "same bits in any batch", box=None)
    for model in served:
        outputs = ", ".join(
            f"{output.name} of {'/'.join(output.targets)} at {'/'.join(map(str, output.horizons))}"
            if output.horizons
            else output.name
            for output in model.outputs
        )
        every = f"{model.period_s:g} s" if model.period_s else "irregular"
        bits = "yes" if model.batch_invariant else "no"
        table.add_row(model.name, model.version, model.task, every, str(len(model.features)), outputs, bits)
    Console().print(table)


@app.command()
@asks_server
def health(
    *,
    server: Server,
    timeout: Annotated[
        float, typer.Option(envvar="TIDEGATE_TIMEOUT", min=0, help="Seconds to wait for an answer.")
    ] = 3.0,
) -> None:
    """Ask a server whether it serves; exit code 0 says yes."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A proxy is for what is far away; one that is meant for gRPC has a variable of its own.
    options = [("grpc.enable_http_proxy", int("grpc_proxy" in os.environ))]
    credentials = server.credentials
    with (
        grpc.insecure_channel(server.address, options)
        if credentials is None
        else grpc.secure_channel(server.address, credentials, options)
    ) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout, metadata=server.metadata
            )
        except grpc.RpcError as error:
            raise Refused(f"server {server.address} is not available: {error.details()}", EXIT_NO) from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(EXIT_NO)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and exits."""
    # gRPC writes lines of its own to stderr unless it is told not to before it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Kubernetes tells every container of a service that is called `tidegate` where that is, as tcp://HOST:PORT. That is no setting.
    if os.environ.get("TIDEGATE_PORT", "").startswith("tcp://"):
        del os.environ["TIDEGATE_PORT"]
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in TRAINING_COMMANDS:
            _run_training(arguments)
            code = 0
        else:
            code = app(arguments, prog_name="tidegate", standalone_mode=False) or 0
    except TyperException as error:  # bad usage
        code = _say(error.format_message().replace("\n", " "), error.exit_code)
    except Refused as error:
        code = _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _serve_alone(config: "ServerConfig") -> None:
    """Serves in this process."""
    import uvloop

    from serving.runtime.lifecycle import print_ready
    from serving.runtime.server import Server
    from serving.runtime.signals import leave_no_zombies

    leave_no_zombies()
    server = Server(config)
    uvloop.run(server.run(lambda: print_ready(server.ready_line), asyncio.Event()))


def _serve_with_workers(config: "ServerConfig", given: Mapping[str, object], log_level: str) -> None:
    """Serves in processes that this one looks after; it loads nothing of what they need."""
    from serving.runtime.supervisor import Supervisor

    supervisor = Supervisor(
        # The code that runs here, not what lies in the current folder.
        [sys.executable, "-P", "-m", "serving.cli.worker"],
        {"log_level": log_level, "config": {name: _as_json(value) for name, value in given.items()}},
        workers=config.worker_count,
        host=config.host,
        port=config.port,
        metrics_host=config.metrics_address,
        metrics_port=config.metrics_port,
        drain_after_s=config.drain_after,
    )
    asyncio.run(supervisor.run())


def _as_json(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _run_training(arguments: list[str]) -> None:
    """Hands the command to the training package, which is loaded only now."""
    found = entry_points(group="tidegate.commands", name=arguments[0])
    try:
        command = next(iter(found)).load()
    except (StopIteration, ModuleNotFoundError):
        raise Refused(
            f"'{arguments[0]}' needs the training package: install tidegate with its extra, tidegate[training]",
            EXIT_USAGE,
        ) from None
    command(arguments)


def _say(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _describe(model: "Model") -> dict[str, object]:
    return {
        "name": model.name,
        "version": model.version,
        "fingerprint": model.fingerprint,
        "task": model.task,
        "period_s": model.period_s,
        "features": [
            {"name": part.name, "unit": part.unit, "low": part.low, "high": part.high} for part in model.features
        ],
        "outputs": [
            {
                "name": part.name,
                "shape": part.shape,
                "targets": part.targets,
                "units": part.units,
                "horizons": part.horizons,
                "quantiles": part.quantiles,
            }
            for part in model.outputs
        ],
        "batch_invariant": model.batch_invariant,
    }


def _add_training_help(name: str, text: str) -> None:
    """Lists a training command in the help; `main` takes it before it gets here."""

    @app.command(name, help=text, add_help_option=False)
    def _command() -> None:
        raise AssertionError(f"{name} is run by main")


for _name, _text in TRAINING_COMMANDS.items():
    _add_training_help(_name, _text)
