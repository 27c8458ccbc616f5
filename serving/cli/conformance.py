"""`tidegate conformance`: plays failures to a client in any language, and reports which rules it violates."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from shutil import which
from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli.errors import EXIT_FAILURE, EXIT_START_FAILED, EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from tidegate.conformance.rules import Violation


class Level(StrEnum):
    """The level of a client; see docs/protocol.md."""

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
        Level, typer.Option(envvar="TIDEGATE_CONFORMANCE_LEVEL", help="Level of the client.")
    ] = Level.FULL,
    only: Annotated[str, typer.Option(envvar="TIDEGATE_CONFORMANCE_ONLY", help="Run only this scenario.")] = "",
    list_: Annotated[
        bool,
        typer.Option("--list", envvar="TIDEGATE_CONFORMANCE_LIST", help="List the scenarios and rules."),
    ] = False,
) -> None:
    """Test a client in any language against failures, and report which rules of docs/protocol.md it violates.

    The client reads timesteps from stdin, one number per line. It writes `STEP HEX` for each prediction (its packed
    outputs in hexadecimal) and `refused REASON` for each dropped timestep. It exits with 0 when everything is stored.
    When its stream is lost, it writes `REASON: message` to stderr and exits with 1. Without a command, scenarios are
    served until Ctrl-C. A client plays one by opening the stream with its name and sending 1, 2, 3, ...
    """
    from tidegate.conformance import runner  # the import of grpc takes half a second, too long for --help

    try:
        names = runner.select_scenarios(level, only)
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    if list_:
        _print_list(names)
        return
    if command and which(command[0]) is None:
        raise CommandError(f"command: got '{command[0]}', expected an existing program", EXIT_USAGE)
    address = f"127.0.0.1:{port}"
    try:
        if not command:
            with suppress(KeyboardInterrupt):
                asyncio.run(runner.serve_scenarios(names, level, address, _print_address, _print_result))
            return
        violations = asyncio.run(runner.check_program(command, names, level, address))
    except RuntimeError as error:
        raise CommandError(f"port: {address} cannot be listened on: {error}", EXIT_START_FAILED) from None
    _print_table(names, violations)
    if any(violations.values()):
        raise typer.Exit(EXIT_FAILURE)


def _print_list(names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tidegate.conformance.rules import RULES
    from tidegate.conformance.scenarios import SCENARIOS

    scenarios = Table("scenario", "what is played", box=None)
    for name in names:
        scenarios.add_row(name, SCENARIOS[name].text)
    rules = Table("rule", "where", "what it says", box=None)
    for name, rule in RULES.items():
        rules.add_row(name, rule.source, rule.text)
    console = Console()
    console.print(scenarios)
    console.print()
    console.print(rules)


def _print_address(address: str) -> None:
    typer.echo(f"ready: grpc={address}")


def _print_result(name: str, violations: Sequence["Violation"]) -> None:
    if not violations:
        typer.echo(f"{name}: kept")
    for violation in violations:
        typer.echo(f"{name}: broke {violation.rule}: {violation.detail}")


def _print_table(names: Sequence[str], violations_by_scenario: Mapping[str, Sequence["Violation"]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("scenario", "verdict", "rule", "what was seen", box=None)
    for name in names:
        for violation in violations_by_scenario[name]:
            table.add_row(name, "broken", violation.rule, violation.detail)
        if not violations_by_scenario[name]:
            table.add_row(name, "kept")
    kept = sum(not violations for violations in violations_by_scenario.values())
    console = Console()
    console.print(table)
    console.print(f"{kept} of {len(names)} scenarios were played without a broken rule")
