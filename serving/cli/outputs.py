"""Checks that a command can write its results before it starts its work, and writes them as a whole."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write a file to, which then takes the place of `path`: a full disk leaves no half of it.

    A device, such as /dev/stdout, and a link are written to as they are.

    Raises:
        CommandError: the file cannot be written.
    """
    direct = path.exists() and (path.is_symlink() or not path.is_file())
    new = path if direct else path.with_name(f"{path.name}.new")
    try:
        yield new
        if not direct:
            new.replace(path)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}", EXIT_USAGE) from None
    finally:
        if not direct:
            new.unlink(missing_ok=True)


def require_matplotlib(option: str) -> None:
    """Raises CommandError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(f"{option} needs matplotlib: install tidegate with its extra, tidegate[plot]", EXIT_USAGE)
