"""Checks that a command can write its results, before it starts its work."""

import importlib.util
from pathlib import Path

from tidegate.cli.errors import EXIT_USAGE, CommandError


def check_outputs(*paths: Path | None) -> None:
    """Raises CommandError when one of the files cannot be written."""
    for path in paths:
        if path is None:
            continue
        existed = path.exists()
        try:
            with path.open("ab"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror}", EXIT_USAGE) from None


def require_matplotlib(option: str) -> None:
    """Raises CommandError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(f"{option} needs matplotlib: install tidegate with its extra, tidegate[plot]", EXIT_USAGE)
