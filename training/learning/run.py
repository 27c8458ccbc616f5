"""A run: the folder that a training leaves behind.

`run.json` says what was asked for and, at the end, what came of it; `metrics.jsonl` has a line an epoch, `best.pt` the best
weights, `last.pt` the whole state of the training. From the folder alone the training can go on, and the same network can
be built and exported again.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError

from training.data.scaler import Scaler
from training.data.series import Floats, Series, Spans, iso, rows_of
from training.data.split import Split
from training.errors import RunError
from training.learning import checkpoint
from training.learning.checkpoint import replace_file
from training.learning.fit import Epoch, Fitted
from training.network.network import Network, build_network
from training.settings import Architecture, Fit, Request, Settings, Source

RUN, _METRICS = "run.json", "metrics.jsonl"
Told = TypeVar("Told", bound=Settings)


class Part(Settings):
    """One part of a split: its rows, the earliest and the latest time among them, and what is whole in it, if anything is."""

    spans: Spans
    rows: int
    start: str
    end: str
    wholes: tuple[str, ...] = ()

    @classmethod
    def of(cls, series: Series, spans: Spans) -> Self:
        """Write down what there is to know of a part."""
        return cls(
            spans=spans,
            rows=rows_of(spans),
            start=iso(min(series.times[first] for first, _ in spans)),
            end=iso(max(series.times[end - 1] for _, end in spans)),
            wholes=tuple(
                dict.fromkeys(
                    group.whole for group in series.groups if group.whole and (group.first, group.end) in spans
                )
            ),
        )


class Facts(Settings):
    """What the model must know of the series that it learned from."""

    name: str
    sha256: str
    rows: int
    groups: int
    period_s: float | None
    features: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    training: Part
    validation: Part
    held_out: Part

    @classmethod
    def of(cls, series: Series, split: Split, scaler: Scaler) -> Self:
        """Write down what there is to know of a series, its split and its training part."""
        return cls(
            name=series.name,
            sha256=series.sha256,
            rows=len(series),
            groups=max(len(series.groups), 1),
            period_s=series.period_s,
            features=series.names,
            units=series.units,
            low=tuple(_shortest(scaler.low)),
            high=tuple(_shortest(scaler.high)),
            training=Part.of(series, split.train),
            validation=Part.of(series, split.validation),
            held_out=Part.of(series, split.test),
        )

    @property
    def split(self) -> Split:
        """The rows of the parts."""
        return Split(self.training.spans, self.validation.spans, self.held_out.spans)


class Outcome(Settings):
    """How the training went; `best_score` is in the objective's unit, see `objective`."""

    epochs: int
    best_epoch: int
    best_score: float
    seconds: float
    stopped: str
    threads: int
    torch: str
    device: str = "cpu"


class Begun(Settings):
    """A training that has not come to its end: it runs, or it was killed."""

    state: Literal["running"] = "running"
    request: Request
    facts: Facts


class Run(Settings):
    """Everything about a training except the weights; `request` is what was asked for, which a resume needs."""

    state: Literal["done"] = "done"
    source: Source
    facts: Facts
    architecture: Architecture
    fit: Fit
    outcome: Outcome
    request: Request | None = None


_EITHER: TypeAdapter[Begun | Run] = TypeAdapter(Annotated[Begun | Run, Field(discriminator="state")])


def outcome(fitted: Fitted) -> Outcome:
    """Sum a training up."""
    return Outcome(
        epochs=len(fitted.epochs),
        best_epoch=fitted.best.number,
        best_score=fitted.best.score,
        seconds=round(fitted.epochs[-1].elapsed_s, 3),
        stopped=fitted.stopped,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        device=fitted.device,
    )


def begin(folder: Path, begun: Begun) -> None:
    """Write `run.json` before the first epoch, so that a training which is killed can go on."""
    replace_file(folder / RUN, _json(begun))


def save(folder: Path, run: Run, network: Network) -> None:
    """Write `run.json` and `best.pt`; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / checkpoint.BEST, network.state_dict())
    replace_file(folder / RUN, _json(run))


def load(folder: Path) -> tuple[Run, Network]:
    """Read the folder of a run that is done and build its network, ready to be exported.

    Raises:
        RunError: the run is not done, the folder lacks a file, or a file is not what `save` writes.
    """
    run = read(folder)
    if isinstance(run, Begun):
        raise RunError(f"run: {folder} is not done; go on with `tidegate train --resume {folder}`, which exports it")
    weights = checkpoint.load(folder / checkpoint.BEST)
    network = build_network(run.architecture, _blank_scaler(run.architecture.features), seed=0)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise checkpoint.damaged(folder / checkpoint.BEST, error) from error
    network.eval()
    return run, network


def read(folder: Path) -> Begun | Run:
    """Read `run.json`.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / RUN
    try:
        return _EITHER.validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(
            f"run: cannot read {path}: {error.strerror}; expected a folder that `tidegate train` wrote"
        ) from error
    except ValidationError as error:
        raise checkpoint.damaged(path, error) from error


# What a training may be told anew when it goes on; everything else would make it another training.
_MAY_CHANGE = {"data", "epochs", "minutes", "patience", "device", "models", "version", "held_out"}
# These are filled in when they are not typed, so nobody can tell.
_NEVER_TYPED = {"name", "out", "resume"}


def resumed(folder: Path, typed: Request) -> Request:
    """What the run of a folder was asked for, with what may be told anew.

    Raises:
        RunError: there is no run that can go on, or something was typed that cannot change.
    """
    request = read(folder).request
    if request is None:
        raise RunError(f"resume: {folder} does not say what was asked for; train again")
    usual = Request(source=Source(), name=request.name, out=folder)
    parts = {
        part: _told_anew(getattr(request, part), getattr(typed, part), getattr(usual, part))
        for part in ("source", "shape", "fit")
    }
    return _told_anew(request, typed, usual).model_copy(update={**parts, "out": folder, "resume": None})


def _told_anew(kept: Told, typed: Told, usual: Told) -> Told:
    """The kept settings with what was typed of those that may change."""
    for name in type(kept).model_fields:
        value = getattr(typed, name)
        if isinstance(value, Settings) or name in _MAY_CHANGE | _NEVER_TYPED:
            continue
        if value not in (getattr(usual, name), getattr(kept, name)):
            word = name.replace("_", "-")
            raise RunError(
                f"{word}: got {value!r}, but the run was begun with {getattr(kept, name)!r}, which cannot change: "
                f"leave --{word} out, or train anew without --resume"
            )
    return kept.model_copy(update={name: getattr(typed, name) for name in typed.model_fields_set & _MAY_CHANGE})


def append_metrics(folder: Path, epoch: Epoch) -> None:
    """Add a line to `metrics.jsonl`."""
    with (folder / _METRICS).open("a", encoding="utf-8") as file:
        file.write(_line(epoch))


def write_metrics(folder: Path, epochs: Sequence[Epoch]) -> None:
    """Write `metrics.jsonl` anew: a kill may have left epochs in it that no checkpoint knows, or half a line."""
    replace_file(folder / _METRICS, "".join(_line(epoch) for epoch in epochs).encode())


def _line(epoch: Epoch) -> str:
    line = {
        "epoch": epoch.number,
        "loss": epoch.loss,
        "score": epoch.score,
        "learning_rate": epoch.learning_rate,
        "elapsed_s": round(epoch.elapsed_s, 3),
    }
    return json.dumps(line) + "\n"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time learns in a folder.

    Raises:
        RunError: another one does.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RunError(f"run: another process is training in {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        os.close(handle)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, one an epoch; none when there is no such file."""
    path = folder / _METRICS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def open_folder(folder: Path) -> None:
    """Make the folder of a new run.

    Raises:
        RunError: a run is there already; a run is never written over.
    """
    if (folder / _METRICS).exists() or (folder / RUN).exists():
        raise RunError(f"out: {folder} holds a run already; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"out: cannot make {folder}: {error.strerror}") from error


def _json(made: Settings) -> bytes:
    return (made.model_dump_json(indent=2) + "\n").encode()


def _blank_scaler(features: int) -> Scaler:
    """Filler until the weights, which hold the real one, are loaded."""
    blank = np.zeros(features, np.float32)
    return Scaler(blank, blank + 1, blank, blank, blank + 1, ())


def _shortest(values: Floats) -> list[float]:
    """The fewest digits that bring the same float32 back: 19.89, not 19.889999389648438."""
    return [float(str(value)) for value in values]
