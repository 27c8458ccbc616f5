"""`tidegate conformance`: has a client in any language play what can go wrong, and says which rules it broke."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from shutil import which
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.refused import EXIT_NO, EXIT_START, EXIT_USAGE, Refused

if TYPE_CHECKING:
    from serving.conformance.stage import Broken


class Level(StrEnum):
    """What a client can do; see docs/protocol.md."""

    ONE = "one"
    SIMPLE = "simple"
    FULL = "full"


def conformance(
    command: Annotated[
        list[str] | None, typer.Argument(help="The client, after --; it is run as COMMAND HOST:PORT SCENARIO.")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, envvar="TIDEGATE_CONFORMANCE_PORT", help="Port to listen on; 0 picks a free one."
        ),
    ] = 0,
    level: Annotated[
        Level, typer.Option(envvar="TIDEGATE_CONFORMANCE_LEVEL", help="What the client can do.")
    ] = Level.FULL,
    only: Annotated[str, typer.Option(envvar="TIDEGATE_CONFORMANCE_ONLY", help="One scenario, by its name.")] = "",
    list_: Annotated[
        bool,
        typer.Option(
            "--list", envvar="TIDEGATE_CONFORMANCE_LIST", help="Only say which scenarios and rules there are."
        ),
    ] = False,
) -> None:
    """Play what can go wrong to a client in any language, and say which rules of docs/protocol.md it breaks.

    The client reads timesteps from stdin, a number a line, and writes `STEP HEX` for each prediction (its packed outputs in
    hexadecimal) and `refused REASON` for each timestep that was dropped. It exits with 0 when all is stored; when its stream
    is lost it writes `REASON: message` to stderr and exits with 1. Without a command the scenarios are served until Ctrl-C to
    clients that open the stream of a scenario's name and send 1, 2, 3, ...
    """
    from serving.conformance import run  # grpc takes half a second, which --help need not wait for

    try:
        names = run.chosen(level, only)
    except ValueError as error:
        raise Refused(str(error), EXIT_USAGE) from None
    if list_:
        _show_list(names)
        return
    if command and which(command[0]) is None:
        raise Refused(f"command: got '{command[0]}', expected a program that is there", EXIT_USAGE)
    address = f"127.0.0.1:{port}"
    try:
        if not command:
            with suppress(KeyboardInterrupt):
                asyncio.run(run.judge_callers(names, level, address, _show_address, _show_verdict))
            return
        verdicts = asyncio.run(run.judge_program(command, names, level, address, lambda *_: None))
    except RuntimeError as error:
        raise Refused(f"port: {address} cannot be listened on: {error}", EXIT_START) from None
    _show_table(names, verdicts)
    if any(verdicts.values()):
        raise typer.Exit(EXIT_NO)


def _show_list(names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from serving.conformance.rules import RULES
    from serving.conformance.scenarios import SCENARIOS

    scenarios = Table("scenario", "what is played", box=None)
    for name in names:
        scenarios.add_row(name, SCENARIOS[name].sentence)
    rules = Table("rule", "where", "what it says", box=None)
    for name, rule in RULES.items():
        rules.add_row(name, rule.written, rule.sentence)
    console = Console()
    console.print(scenarios)
    console.print()
    console.print(rules)


def _show_address(address: str) -> None:
    typer.echo(f"ready: grpc={address}")


def _show_verdict(name: str, broken: Sequence["Broken"]) -> None:
    if not broken:
        typer.echo(f"{name}: kept")
    for one in broken:
        typer.echo(f"{name}: broke {one.rule}: {one.seen}")


def _show_table(names: Sequence[str], verdicts: Mapping[str, Sequence["Broken"]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("scenario", "verdict", "rule", "what was seen", box=None)
    for name in names:
        for broken in verdicts[name]:
            table.add_row(name, "broken", broken.rule, broken.seen)
        if not verdicts[name]:
            table.add_row(name, "kept")
    kept = sum(not broken for broken in verdicts.values())
    console = Console()
    console.print(table)
    console.print(f"{kept} of {len(names)} scenarios were played without a broken rule")
