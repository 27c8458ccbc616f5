"""The commands of `tidegate` that train and score. Only this room prints, parses options and knows exit codes."""

from tidegate.training.cli.app import main

__all__ = ["main"]
