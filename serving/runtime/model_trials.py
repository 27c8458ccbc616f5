"""Tries models before they are served, unless this machine has tried the same files before: see `runtime.model_check`.

A trial takes a quarter of a second of processor time or more. What it found is kept in a file, so that a server that is
started again is ready sooner. It counts for the same files, limits, libraries and processor only.
"""

import asyncio
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tidegate.runtime.model_checker import CheckedModel, ModelChecker, TrialLimits

log = logging.getLogger("tidegate.models")

FILE = "model-trials.json"
# Raise this number when a trial finds out more, or something else.
TRIAL = 1
# A folder of models has some tens of versions. The oldest trials are forgotten first.
KEPT_MAX = 1000
LIBRARIES = ("tidegate", "onnxruntime", "onnxruntime-gpu", "numpy")
# What is kept of a model that was tried. The rest of a `CheckedModel` depends on where it is.
FOUND = ("fingerprint", "check", "warnings", "sizes")
CPU_FIELDS = ("model name", "flags", "CPU part", "Features")


class ModelTrials:
    """The trials of one server.

    Args:
        make_checker: starts a process that tries models.
        limits: what a model may take.
        path: the file with what was found before; None to try all models, and to write nothing.

    """

    def __init__(self, make_checker: Callable[[], ModelChecker], limits: TrialLimits, path: Path | None) -> None:
        self._make_checker = make_checker
        self._limits = limits
        self._path = path
        self._found = {} if path is None else _read(path)
        self._is_new = False  # whether something was found that the file does not have
        # Where nothing was tried yet, the process loads its libraries while this one starts.
        self._checker = None if self._found else make_checker()

    def __repr__(self) -> str:
        return f"<ModelTrials: {len(self._found)} kept in {self._path}>"

    async def check(self, name: str, version: str, folder: Path, size: int) -> CheckedModel:
        """Tries a model, whose files have `size` bytes. Several are tried side by side.

        Raises ContractBroken when it cannot be served, with the reason; and OSError when no process can be started.
        """
        key = None if self._path is None else await asyncio.to_thread(trial_key, folder, self._limits)
        if key is not None and (found := self._found.get(key)) is not None:
            return CheckedModel(name, version, str(folder), device=self._limits.device, **found)
        if self._checker is None:
            self._checker = self._make_checker()
        model = await self._checker.check(name, version, folder, size, self._limits)
        sizes = model.check["sizes"]
        # A trial that ran out of time is done again: the machine may have been busy.
        if key is not None and len(sizes) == max(sizes):
            self._found[key] = {field: getattr(model, field) for field in FOUND}
            self._is_new = True
        return model

    async def end(self) -> None:
        """Ends the process that tries models, until it is needed again, and saves."""
        if self._checker is not None:
            checker, self._checker = self._checker, None
            await checker.close()
        await self.save()

    async def save(self) -> None:
        """Writes what was found, where the folder for it is there already. Failing to do so only costs time at the next start."""
        if self._is_new and self._path is not None and self._path.parent.is_dir():
            self._is_new = False
            await asyncio.to_thread(self._write, self._path)

    def _write(self, path: Path) -> None:
        kept = dict(list(self._found.items())[-KEPT_MAX:])
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(kept), "utf-8")
            temporary.replace(path)
        except OSError as error:
            log.warning("what was found about models cannot be kept in %s: %s", path, error.strerror)


def trial_key(folder: Path, limits: TrialLimits) -> str | None:
    """What a trial depends on, as a hash; None when a part of the model is a link, and may be anywhere."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    if any(path.is_symlink() for path in files):
        return None
    parts: list[Any] = [TRIAL, asdict(limits), _machine()]
    for path in files:
        with path.open("rb") as file:
            parts.append([str(path.relative_to(folder)), hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _machine() -> list[str]:
    """The libraries and the processor: another one may compute other bits."""
    found = [platform.machine(), platform.python_version()]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            found.append(f"{library} not installed")
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return [*found, platform.processor()]
    return [*found, *sorted({line for line in lines if line.startswith(CPU_FIELDS)})]


def _read(path: Path) -> dict[str, Any]:
    """What was found before, by the keys of the trials; nothing when there is no file, or one that cannot be used."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is of no use, and models are tried again: %s", path, error)
        return {}
    if isinstance(found, dict) and all(isinstance(each, dict) and {*each} == {*FOUND} for each in found.values()):
        return found
    log.warning("%s is of no use, and models are tried again: it has something else than trials", path)
    return {}
