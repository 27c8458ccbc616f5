"""The commands of `tidegate`.

Exit codes: 0 success, 1 failure (not healthy, connection lost), 2 bad usage or input, 3 the server could not start. An
error is one line on stderr. A traceback is always a bug.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from tidegate.cli import backup, bench, conformance, models, streams, tokens
from tidegate.cli.command_group import SERVING, STREAMS_AND_MODELS, TOOLS, TRAINING, CommandGroup
from tidegate.cli.connection import ConnectionSettings, unavailable, with_server_options
from tidegate.cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_START_FAILED, EXIT_USAGE, CommandError
from tidegate.cli.options import ModelName, ModelVersion, with_options_of
from tidegate.cli.settings_file import ConfigFile, server_environment
from tidegate.cli.variables import known_variables, mistakes, service_ports
from tidegate.cli.versions import print_versions
from tidegate.runtime.config import InvalidSetting, ServerConfig

log = logging.getLogger("tidegate.cli")

TRAINING_COMMANDS = {
    "inspect": "Tell what a table of sensor data or an ONNX graph holds, and what looks wrong.",
    "train": "Learn a model from a sensor series.",
    "backtest": "Learn from an ever longer past and judge what follows, several times.",
    "tune": "Search for good settings of a model.",
    "evaluate": "Score an exported model beside the baselines.",
    "export": "Write a trained run as a model that can be served.",
    "report": "Write the page that says how good a model is.",
    "datasets": "List the named data sets, with source and licence.",
}

app = typer.Typer(
    no_args_is_help=True,
    cls=CommandGroup,
    rich_markup_mode=None,
)

app.add_typer(streams.app, name="streams", rich_help_panel=STREAMS_AND_MODELS)
app.add_typer(models.app, name="models", rich_help_panel=STREAMS_AND_MODELS)
app.command("promote", rich_help_panel=STREAMS_AND_MODELS)(models.promote)
app.command("rollback", rich_help_panel=STREAMS_AND_MODELS)(models.rollback)
app.add_typer(tokens.app, name="token", rich_help_panel=SERVING)
app.command("backup", rich_help_panel=SERVING)(backup.backup)
app.command("bench", rich_help_panel=TOOLS)(bench.bench)
app.command("conformance", rich_help_panel=TOOLS)(conformance.conformance)


@app.callback()
def tidegate(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_versions, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Train recurrent models on sensor series and serve them, one timestep at a time."""


@app.command(rich_help_panel=SERVING)
@with_options_of(ServerConfig)
def serve(
    *,
    context: typer.Context,
    config_file: ConfigFile = None,
    log_level: Annotated[
        str, typer.Option(envvar="TIDEGATE_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(envvar="TIDEGATE_LOG_FORMAT", help="text, json, or auto: text for a terminal, else json."),
    ] = "auto",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only check the settings and the files that they name, and each model; then exit."
        ),
    ] = False,
    **settings: Any,
) -> None:
    """Serve models over gRPC until SIGTERM or Ctrl-C, then drain."""
    from tidegate.core.errors import ContractBroken
    from tidegate.runtime.descriptors import raise_limit
    from tidegate.runtime.lifecycle import StartFailed, StopFailed, open_standard_files
    from tidegate.runtime.log import start_log
    from tidegate.runtime.log_format import choose_format

    if log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise CommandError(f"--log-level: got '{log_level}', expected debug, info, warning or error", EXIT_USAGE)
    open_standard_files()
    try:
        form = choose_format(log_format, sys.stderr.isatty())
    except ValueError as error:
        raise CommandError(f"--log-format: {error}", EXIT_USAGE) from None
    start_log(log_level.upper(), form)
    for mistake in mistakes(os.environ, known_variables(context.find_root().command)):
        log.warning("%s", mistake)
    if config_file is not None:
        log.info("settings are read from %s", config_file)
    raise_limit()
    config = _make_config(settings)
    _check_collector(config.otlp_endpoint)
    try:
        if check:
            _check(config)
        elif config.worker_count == 1:
            _serve_in_process(config)
        else:
            _serve_with_workers(config, {"log_level": log_level.upper(), "log_format": form})
    except (ContractBroken, StartFailed) as error:
        raise CommandError(str(error), EXIT_START_FAILED) from None
    except StopFailed as error:
        raise CommandError(str(error), EXIT_FAILURE) from None


@app.command(rich_help_panel=STREAMS_AND_MODELS)
@with_server_options
def stream(
    file: Annotated[Path, typer.Argument(help="CSV with a column for each feature of the model, rows in time order.")],
    *,
    connection: ConnectionSettings,
    model: ModelName = "",
    version: ModelVersion = "",
    stream_id: Annotated[
        str, typer.Option(envvar="TIDEGATE_STREAM_ID", help="Stream to create or to continue; row n is its timestep n.")
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_GROUP",
            help="Column with the series of each row; each series is a stream, named STREAM-ID-value.",
        ),
    ] = "",
    timezone: Annotated[
        str,
        typer.Option(
            envvar="TIDEGATE_TIMEZONE",
            help="Zone of local times, such as Europe/Berlin or +01:00; by default that of the training.",
        ),
    ] = "",
    rate: Annotated[
        float, typer.Option(envvar="TIDEGATE_RATE", min=0, help="Timesteps per second; 0 for as fast as possible.")
    ] = 0.0,
    limit: Annotated[
        int, typer.Option(envvar="TIDEGATE_LIMIT", min=0, help="Only the first rows of a series; 0 for all.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(envvar="TIDEGATE_OUT", help="Write the predictions as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(envvar="TIDEGATE_PLOT", help="Write a plot as PNG.")] = None,
    scores: Annotated[Path | None, typer.Option(envvar="TIDEGATE_SCORES", help="Write the scores as JSON.")] = None,
) -> None:
    """Send a CSV file one timestep at a time and compare predictions with actual values."""
    from tidegate.cli.replay import Replay, ReplayFailed
    from tidegate.cli.sensor_table import InvalidTable
    from tidegate.client import ClientError, ServerUnavailable, StreamLost

    replay = Replay(
        file,
        connection,
        model=model,
        version=version,
        stream_id=stream_id,
        group=group,
        rate=rate,
        limit=limit,
        timezone=timezone,
    )
    try:
        asyncio.run(replay.run(out=out, plot=plot, scores=scores))
    except (InvalidTable, ReplayFailed) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except ServerUnavailable as error:
        raise unavailable(connection.address, error) from None
    except StreamLost as error:
        raise CommandError(str(error), EXIT_FAILURE) from None
    except ClientError as error:
        raise CommandError(str(error), EXIT_USAGE) from None


@app.command(rich_help_panel=SERVING)
@with_server_options
def health(
    *,
    connection: ConnectionSettings,
    timeout: Annotated[
        float, typer.Option(envvar="TIDEGATE_TIMEOUT", min=0, help="Seconds to wait for an answer.")
    ] = 3.0,
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            envvar="TIDEGATE_HEALTH_HTTP",
            help="Ask the port of /metrics on this machine instead, which needs neither TLS nor a token.",
        ),
    ] = False,
) -> None:
    """Check whether a server is serving; exit code 0 means yes."""
    if http:
        from tidegate.cli.http_health import ask_health

        print(ask_health(server_environment(os.environ), timeout))
        return
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # http_proxy is ignored, because the server is usually near. A proxy for gRPC is set as grpc_proxy.
    options = [("grpc.enable_http_proxy", int("grpc_proxy" in os.environ))]
    credentials = connection.credentials
    with (
        grpc.insecure_channel(connection.address, options)
        if credentials is None
        else grpc.secure_channel(connection.address, credentials, options)
    ) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout, metadata=connection.metadata
            )
        except grpc.RpcError as error:
            raise CommandError(
                f"server {connection.address} is not available: {error.details()}", EXIT_FAILURE
            ) from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(EXIT_FAILURE)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and exits."""
    # gRPC writes to stderr unless this is set before its import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # For a service named `tidegate`, Kubernetes sets TIDEGATE_PORT to tcp://HOST:PORT in every container. It is not a setting.
    for name in service_ports(os.environ):
        del os.environ[name]
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["inspect"] and any(_is_graph(argument) for argument in arguments[1:]):
            code = _graph_command()(arguments[1:], prog_name="tidegate inspect", standalone_mode=False) or 0
        elif arguments and arguments[0] in TRAINING_COMMANDS:
            _run_training(arguments)
            code = 0
        else:
            code = app(arguments, prog_name="tidegate", standalone_mode=False) or 0
    except TyperException as error:  # bad usage
        code = _print_error(error.format_message().replace("\n", " "), error.exit_code)
    except CommandError as error:
        code = _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _make_config(settings: Mapping[str, Any]) -> ServerConfig:
    """Checks the settings."""
    from tidegate.runtime.crash_points import VARIABLE, arm

    try:
        arm(os.environ.get(VARIABLE, ""))
        return ServerConfig(**settings)
    except InvalidSetting as error:
        raise CommandError(f"--{error.name.replace('_', '-')}: {error.problem}", EXIT_USAGE) from None
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from None


def _check_collector(option: str) -> None:
    """Checks whether spans can be sent, before anything else is done. A worker says nothing of it again."""
    from tidegate.runtime.collector import find_collector

    try:
        find_collector(option, os.environ)
    except ValueError as error:
        if option:
            raise CommandError(f"--otlp-endpoint: {error}", EXIT_USAGE) from None
        log.warning("no spans are sent: %s", error)


def _check(config: ServerConfig) -> None:
    """Checks what a start needs, and prints what would be served."""
    from tidegate.runtime.make_catalog import make_catalog
    from tidegate.runtime.model_settings import ModelSettings
    from tidegate.runtime.start_check import check_start

    default = ModelSettings.model_validate({"policy": config.swap_policy, "rewarm_steps": config.rewarm_steps})
    models = check_start(
        lambda: make_catalog(config, None),
        default,
        models=config.models,
        load=config.load,
        tls=config.tls_files,
        tokens=config.tokens_path,
        state=config.state_address,
    )
    for model in asyncio.run(models):
        print(f"ok: {model.title}, fingerprint {model.fingerprint[:12]}, {model.sizes}")


def _serve_in_process(config: ServerConfig) -> None:
    """Serves in this process."""
    import uvloop

    from tidegate.runtime.model_checker import ModelChecker

    first = [ModelChecker()]  # loads its libraries while this process loads its own

    from tidegate.runtime.lifecycle import print_ready
    from tidegate.runtime.server import Server
    from tidegate.runtime.signals import leave_no_zombies

    leave_no_zombies()
    server = Server(config, make_checker=lambda: first.pop() if first else ModelChecker())
    uvloop.run(server.run(lambda: print_ready(server.ready_line), asyncio.Event()))


def _serve_with_workers(config: ServerConfig, log_settings: Mapping[str, str]) -> None:
    """Serves in worker processes. This process supervises them and imports nothing that they need."""
    from tidegate.runtime.make_catalog import make_catalog
    from tidegate.runtime.supervisor import Supervisor

    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    supervisor = Supervisor(
        # The code of this process, not that of the current folder.
        [sys.executable, "-P", "-m", "tidegate.cli.worker"],
        {**log_settings, "config": settings},
        workers=config.worker_count,
        host=config.host,
        port=config.port,
        metrics_host=config.metrics_address,
        metrics_port=config.metrics_port,
        drain_after_s=config.drain_after,
        catalog=make_catalog(config, config.data_dir),
    )
    asyncio.run(supervisor.run())


def _is_graph(argument: str) -> bool:
    return argument.lower().endswith(".onnx") and not argument.startswith("-")


def _graph_command() -> typer.Typer:
    """The other `tidegate inspect`: that of a graph, which needs no training package."""
    from tidegate.cli.inspect_graph import inspect_graph

    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    command.command()(inspect_graph)
    return command


def _run_training(arguments: list[str]) -> None:
    """Runs a command of the training package, which is imported only now."""
    found = entry_points(group="tidegate.commands", name=arguments[0])
    try:
        command = next(iter(found)).load()
    except (StopIteration, ModuleNotFoundError):
        raise CommandError(
            f"'{arguments[0]}' needs the training package: install tidegate with its extra, tidegate[training]",
            EXIT_USAGE,
        ) from None
    command(arguments)


def _print_error(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _add_training_help(name: str, text: str) -> None:
    """Lists a training command in the help. `main` runs it before typer sees it."""

    @app.command(name, help=text, add_help_option=False, rich_help_panel=TRAINING)
    def _command() -> None:
        raise AssertionError(f"{name} is run by main")


for _name, _text in TRAINING_COMMANDS.items():
    _add_training_help(_name, _text)
