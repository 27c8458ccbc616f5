"""Where the server is that a command talks to."""

import os
from collections.abc import Mapping
from typing import Annotated

import typer

from serving.runtime.host import WILDCARDS, with_port

PORT = 50051


def default_address(environment: Mapping[str, str]) -> str:
    """Where a server listens that was started in this environment, as in a container: TIDEGATE_HOST and TIDEGATE_PORT."""
    host = environment.get("TIDEGATE_HOST", "")
    port = environment.get("TIDEGATE_PORT", "")
    return with_port(
        "localhost" if not host or host in WILDCARDS else host,
        int(port)
        if port.isdecimal() and int(port)
        else PORT,  # a port that was picked is known from the ready line alone
    )


Address = Annotated[
    str,
    typer.Option(
        envvar="TIDEGATE_ADDRESS",
        metavar="HOST:PORT",
        help="Where the server is; unix:PATH for a socket.",
        show_default="localhost, at TIDEGATE_PORT or 50051",
        callback=lambda given: given or default_address(os.environ),
    ),
]
