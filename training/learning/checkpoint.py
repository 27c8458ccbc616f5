"""Checkpoints: the whole state of a training on disk, so that it goes on after a kill as if nothing had happened.

`last.pt` is complete in itself; `best.pt`, the best weights so far, is what is exported. Each is replaced in one go: a
reader finds the old one or the new one. Knows nothing of what is in them.
"""

import io
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import RunError

BEST, LAST = "best.pt", "last.pt"
# Epochs of small series take milliseconds, and flushing a file to disk as long again.
EVERY_S = 5.0

State = dict[str, Any]  # tensors, numbers, text, lists and dictionaries: what is loaded without running code


class Keeper:
    """Keeps the state of one training in its run folder.

    Args:
        folder: of the run; it is there.
        every_s: seconds between two writes; states that come sooner are held in memory until `flush`.
    """

    def __init__(self, folder: Path, every_s: float = EVERY_S) -> None:
        self.folder = folder
        self.every_s = every_s
        self.written_s = time.monotonic()
        self.held: State | None = None

    def found(self) -> State | None:
        """The state that was written last; None when there is none yet.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / LAST
        return load(path) if path.exists() else None

    def keep(self, state: State) -> None:
        """Write a state, whose `best` are the best weights, or hold a copy of it when the last write was just now."""
        if time.monotonic() - self.written_s < self.every_s:
            self.held = _copy(state)
        else:
            self._write(state)

    def flush(self) -> None:
        """Write the state that is held, if there is one."""
        if self.held is not None:
            self._write(self.held)

    def _write(self, state: State) -> None:
        save(self.folder / BEST, state["best"])
        save(self.folder / LAST, state)
        self.held, self.written_s = None, time.monotonic()


def save(path: Path, state: State | dict[str, Tensor]) -> None:
    """Write a state in place of the one that is there."""
    content = io.BytesIO()
    torch.save(state, content)
    replace_file(path, content.getbuffer())


def load(path: Path) -> State:
    """Read a state, onto the CPU.

    Raises:
        RunError: the file cannot be read, or is not what `save` writes.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(
            f"run: cannot read {path}: {error.strerror}; expected a file that `tidegate train` wrote"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise damaged(path, error) from error
    return state


def damaged(path: Path, error: Exception) -> RunError:
    """What to say of a file that is not what was written; the error's own message is pages long, for programmers."""
    return RunError(
        f"run: {path} is damaged ({type(error).__name__}); expected what `tidegate train` wrote: train again"
    )


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Put a file in place of another in one go; it is on disk afterwards."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _copy(value: Any) -> Any:
    """A state that stays when the training goes on; tuples are never changed. Several times quicker than `deepcopy`."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def generators(device: torch.device) -> State:
    """The state of torch's generators."""
    state: State = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_generators(device: torch.device, state: State) -> None:
    """Put torch's generators back; a state of another kind of device says nothing of this one."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
