"""Files that are written as a whole or not at all, and errors that name the file.

A full disk must leave neither half a file nor the question which file it was.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file to write to, in UTF-8; it replaces the file at `path` when the block ends without an error.

    The folder is created if it is missing. A device, such as /dev/stdout, and a link are written to as they are.

    Raises:
        OSError: with the path as its file name.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (path.is_symlink() or not path.is_file()):
            with path.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            return
        new = path.with_name(f"{path.name}.new")
        try:
            with new.open("w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically; the new content is on disk afterwards.

    Raises:
        OSError: with the path as its file name; the old file is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    with naming(path):
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block names the file: those of writing, such as of a full disk, do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
