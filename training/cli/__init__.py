"""The commands of `tidegate` that train and judge. The only room that prints, parses options and knows exit codes."""

from training.cli.app import main

__all__ = ["main"]
