"""The versions on disk, `<name>/<version>/model.onnx`: which there are, whether they change, and copies of them.

The rules of this file:
1. A folder whose name begins with a dot or ends with `.tmp` is not a version yet: write it under such a name and rename
   it.
2. A version is read once, into a private copy: see `ModelCopies`. A file that changed meanwhile makes the copy invalid.
3. Nothing outside the folder of a version is copied, but the files of `MOUNTED`: container platforms mount files as
   links.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.errors import ContractBroken
from tidegate.runtime.lifecycle import StartFailed

GRAPH = "model.onnx"
# Beside the versions of a model: how it is served; see `runtime.model_settings`.
SETTINGS = "serving.toml"
# May be links to anywhere.
MOUNTED = (GRAPH, "model.toml", "card.json")
# For people: large, often written after the rest, and nothing that a server reads.
NOT_COPIED = (".html", ".svg", ".png")
# Enough for weights in one file a tensor. More would be somebody's data set.
FILES_MAX = 10_000
# A folder that was copied to its place must look the same for so long before it is loaded, in seconds. One that was
# renamed is complete, but looks the same as one that is being written.
SETTLE_SECONDS = 1.0
PREFIX = "tidegate-models-"
LOCK = "lock"
MIB = 1 << 20


class StillChanging(Exception):
    """The files of a version changed while they were copied."""


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The files of one version, as of one look at them.

    `files` has the path below the folder, the size in bytes, the time of the last change and the inode of each.
    """

    name: str
    version: str
    folder: Path
    files: tuple[tuple[str, int, int, int], ...]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def bytes(self) -> int:
        """How large the files are together."""
        return sum(size for _, size, _, _ in self.files)


class Settling:
    """Tells which versions have looked the same for a while."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[VersionFiles | None, float]] = {}  # since when each version looks as it does

    def __repr__(self) -> str:
        return f"<Settling: {len(self._seen)} versions>"

    def look(self, found: Mapping[str, VersionFiles], known: Iterable[str], now: float) -> set[str]:
        """The titles of the versions that do not change any more, also of `known` ones that are gone."""
        self._seen = {title: self._since(title, found.get(title), now) for title in (*found, *known)}
        return {title for title, (_, since) in self._seen.items() if now - since >= SETTLE_SECONDS}

    def is_changing(self, now: float) -> bool:
        """Whether a version has changed within that time."""
        return any(now - since < SETTLE_SECONDS for _, since in self._seen.values())

    def _since(self, title: str, files: VersionFiles | None, now: float) -> tuple[VersionFiles | None, float]:
        seen = self._seen.get(title)
        return seen if seen is not None and seen[0] == files else (files, now)


def scan(root: Path) -> list[VersionFiles]:
    """The versions below a folder, in the order of their paths. Raises OSError when the folder cannot be read."""
    found = []
    for name in _folders(root):
        with suppress(OSError):  # it was removed meanwhile
            for folder in _folders(name):
                found += [files] if (files := _look(name.name, folder)) else []
    return found


def check(files: VersionFiles, bytes_max: int) -> None:
    """Checks what can be told without reading a version. Raises ContractBroken."""
    where = str(files.folder / GRAPH)
    if not files.version.isdecimal():
        example = f"{files.name}/1"
        raise ContractBroken(
            where, f"version '{files.version}' is not a decimal number, expected for example {example}"
        )
    if files.version != str(int(files.version)):
        raise ContractBroken(
            where, f"version '{files.version}' begins with a zero, expected {files.name}/{int(files.version)}"
        )
    if not stat.S_ISREG((files.folder / GRAPH).stat().st_mode):
        raise ContractBroken(where, "it is not a regular file")
    if files.bytes > bytes_max:
        raise ContractBroken(
            where,
            f"its files have {files.bytes / MIB:.0f} MiB, expected at most {bytes_max / MIB:.0f} MiB; "
            "--model-bytes-max allows more",
        )
    if len(files.files) > FILES_MAX:
        raise ContractBroken(where, f"its folder has more than {FILES_MAX} files")


class ModelCopies:
    """Private copies of versions, in a temporary folder.

    Whatever happens to the files on disk, every worker reads the same bytes, also one that is restarted later. The
    folder vanishes with `close`; after a kill, with the next start.

    Args:
        spare: the folder to use where the system has no folder for temporary files.

    Raises:
        StartFailed: there is no folder to write to.

    """

    def __init__(self, spare: Path) -> None:
        try:
            parent = Path(tempfile.gettempdir())
        except FileNotFoundError:  # a read-only file system
            parent = spare
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise StartFailed(
                f"models cannot be copied to {parent}: {error.strerror}; let user {os.getuid()} write to it, or set "
                "TMPDIR to a folder where it can"
            ) from error
        # The lock has its name only once it is held, so nobody takes the folder for a stale one.
        unnamed = self.folder / f"{LOCK}.tmp"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.folder / LOCK)
        self._count = 0

    def __repr__(self) -> str:
        return f"<ModelCopies in {self.folder}>"

    def add(self, files: VersionFiles) -> Path:
        """Copies a version. Returns the folder of the copy.

        Raises:
            StillChanging: a file changed meanwhile.
            ContractBroken: a file cannot be read, or the copy cannot be written.

        """
        self._count += 1
        target = self.folder / str(self._count) / files.name / files.version
        try:
            for path, *_ in files.files:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                leads_out = path not in MOUNTED and not _is_inside(files.folder / path, files.folder)
                if leads_out:
                    (target / path).symlink_to((files.folder / path).resolve())  # whoever needs it refuses it
                else:
                    shutil.copyfile(files.folder / path, target / path)
            if _look(files.name, files.folder) == files:
                return target
        except OSError as error:
            self.remove(target)
            if _look(files.name, files.folder) != files:
                raise StillChanging(files.title) from error
            raise ContractBroken(str(files.folder / GRAPH), f"cannot be read: {error.strerror}") from error
        self.remove(target)
        raise StillChanging(files.title)

    def remove(self, copy: Path) -> None:
        """Removes a copy. A process that has a file of it open can go on to read it."""
        shutil.rmtree(copy.parent.parent, ignore_errors=True)

    def close(self) -> None:
        """Removes all copies."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class VersionFolders:
    """The versions where they are, without copies: for a check, which writes nothing."""

    def add(self, files: VersionFiles) -> Path:
        """The folder of a version."""
        return files.folder

    def remove(self, folder: Path) -> None:
        """Leaves it."""

    def close(self) -> None:
        """There is nothing to remove."""


def _folders(parent: Path) -> list[Path]:
    """The folders below a folder that are not being written, in order."""
    return sorted(
        path for path in parent.iterdir() if not path.name.startswith(".") and path.suffix != ".tmp" and path.is_dir()
    )


def _look(name: str, folder: Path) -> VersionFiles | None:
    """The files of a version as they are now; None when it has no graph."""
    files: list[tuple[str, int, int, int]] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".") and not each.endswith(".tmp")]
        for each in names:
            path = Path(parent, each)
            if each.startswith(".") or path.suffix in NOT_COPIED or len(files) > FILES_MAX:
                continue
            with suppress(OSError):  # it was removed meanwhile, or is a link to nowhere
                info = path.stat()
                if stat.S_ISREG(info.st_mode) or each == GRAPH:
                    files.append((str(path.relative_to(folder)), info.st_size, info.st_mtime_ns, info.st_ino))
    if not any(path == GRAPH for path, *_ in files):
        return None
    return VersionFiles(name, folder.name, folder, tuple(sorted(files)))


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, also when links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def _remove_stale(parent: Path) -> None:
    """Removes what servers have left that were killed. Nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
