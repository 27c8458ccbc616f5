"""`tidegate --version`: the versions of what a report of a fault must name."""

import platform
from importlib.metadata import version

import typer

PACKAGES = ("tidegate", "onnxruntime", "grpcio")


def print_versions(asked: bool) -> None:
    """Prints the versions and exits, when they were asked for."""
    if not asked:
        return
    for package in PACKAGES:
        typer.echo(f"{package} {version(package)}")
    typer.echo(f"Python {platform.python_version()}")
    raise typer.Exit
