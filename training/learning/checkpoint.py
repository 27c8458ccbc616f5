"""Checkpoints: the whole state of a training on disk, so that it resumes exactly after a kill.

`last.pt` is complete in itself. `best.pt` holds the best weights so far, which are exported. Each file is replaced
atomically: a reader finds the old one or the new one. This module does not know their content.
"""

import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tidegate.training.errors import RunError
from tidegate.training.outputs import replace_file

BEST, LAST = "best.pt", "last.pt"
# Epochs of small series take milliseconds, and so does flushing a file to disk.
EVERY_S = 5.0

State = dict[str, Any]  # tensors, numbers, text, lists and dictionaries: what is loaded without running code


class Checkpointer:
    """Saves the checkpoints of one training in its run folder.

    Args:
        folder: of the run; it exists.
        every_s: seconds between two writes. A state that comes sooner stays in memory until `flush`.
    """

    def __init__(self, folder: Path, every_s: float = EVERY_S) -> None:
        self.folder = folder
        self.every_s = every_s
        self.written_s = time.monotonic()
        self.pending: State | None = None

    def load(self) -> State | None:
        """The state that was written last; None if there is none yet.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / LAST
        return load(path) if path.exists() else None

    def save(self, state: State) -> None:
        """Write a state, whose `best` are the best weights; keep a copy in memory if the last write was just now."""
        if time.monotonic() - self.written_s < self.every_s:
            self.pending = _copy(state)
        else:
            self._write(state)

    def flush(self) -> None:
        """Write the state that is still in memory, if there is one."""
        if self.pending is not None:
            self._write(self.pending)

    def _write(self, state: State) -> None:
        save(self.folder / BEST, state["best"])
        save(self.folder / LAST, state)
        self.pending, self.written_s = None, time.monotonic()


def save(path: Path, state: State | dict[str, Tensor]) -> None:
    """Write a state; it replaces the file atomically."""
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
    """The error of a damaged file. The original message is pages long and for programmers."""
    return RunError(
        f"run: {path} is damaged ({type(error).__name__}); expected what `tidegate train` wrote: train again"
    )


def _copy(value: Any) -> Any:
    """A copy that the training does not change. Tuples are never changed. Several times faster than `deepcopy`."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def generators(device: torch.device) -> State:
    """The states of torch's random number generators."""
    state: State = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_generators(device: torch.device, state: State) -> None:
    """Restore torch's random number generators. The state of another kind of device is ignored."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
