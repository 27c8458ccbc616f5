"""The command line: `tidegate`."""

from serving.cli.app import main

__all__ = ["main"]
