"""Where the server is that a command talks to."""

import os
from collections.abc import Mapping
from typing import Annotated

import typer

from serving.runtime.host import WILDCARDS, is_unix, with_port

PORT = 50051
PORT_MAX = 2**16 - 1


def default_address(environment: Mapping[str, str]) -> str:
    """Where a server listens that was started in this environment, as in a container: TIDEGATE_HOST and TIDEGATE_PORT."""
    host = environment.get("TIDEGATE_HOST", "")
    port = environment.get("TIDEGATE_PORT", "")
    if port and not port.isdecimal():
        raise typer.BadParameter(f"TIDEGATE_PORT: got '{port}', expected a number from 0 to {PORT_MAX}")
    # A port that was picked is known from the ready line alone.
    return with_port("localhost" if not host or host in WILDCARDS else host, int(port or 0) or PORT)


def _checked(given: str) -> str:
    """The address that was given, or the default; the system would take a port that there is not for another one."""
    address = given or default_address(os.environ)
    port = address.rpartition(":")[2]
    if not is_unix(address) and port.isdecimal() and not 0 < int(port) <= PORT_MAX:
        raise typer.BadParameter(f"got port {port}, expected 1 to {PORT_MAX}")
    return address


Address = Annotated[
    str,
    typer.Option(
        envvar="TIDEGATE_ADDRESS",
        metavar="HOST:PORT",
        help="Where the server is; unix:PATH for a socket.",
        show_default="localhost, at TIDEGATE_PORT or 50051",
        callback=_checked,
    ),
]
