"""A run: the folder that a training leaves behind.

`run.json` says what was done, `metrics.jsonl` has a line an epoch, `weights.pt` the best weights. From it alone the same
network can be built and exported again.
"""

import json
import pickle
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from training.errors import RunError
from training.fit import Epoch, Fitted
from training.network import Network, build_network
from training.series import Floats, Scaler, Series, Spans, Split, iso, rows_of
from training.settings import Architecture, Fit, Settings, Source

_RUN, _METRICS, _WEIGHTS = "run.json", "metrics.jsonl", "weights.pt"


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


class Run(Settings):
    """Everything about a training except the weights."""

    source: Source
    facts: Facts
    architecture: Architecture
    fit: Fit
    outcome: Outcome


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
    )


def save(folder: Path, run: Run, network: Network) -> None:
    """Write `run.json` and `weights.pt`; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / _WEIGHTS)
    (folder / _RUN).write_text(run.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Run, Network]:
    """Read a run folder and build its network, ready to be exported.

    Raises:
        RunError: the folder lacks a file, or a file is not what `save` writes.
    """
    try:
        run = Run.model_validate_json((folder / _RUN).read_text(encoding="utf-8"))
        weights: dict[str, Tensor] = torch.load(folder / _WEIGHTS, weights_only=True)
        network = build_network(run.architecture, _blank_scaler(run.architecture.features), seed=0)
        network.load_state_dict(weights)
    except OSError as error:
        raise RunError(
            f"run: cannot read {error.filename}: {error.strerror}; expected a folder that `tidegate train` wrote"
        ) from error
    except (ValidationError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        kind = type(error).__name__  # their messages are pages long and speak to programmers
        raise RunError(
            f"run: {folder} is damaged ({kind}); expected what `tidegate train` wrote: train again"
        ) from error
    network.eval()
    return run, network


def append_metrics(folder: Path, epoch: Epoch) -> None:
    """Add a line to `metrics.jsonl`."""
    line = {
        "epoch": epoch.number,
        "loss": epoch.loss,
        "score": epoch.score,
        "learning_rate": epoch.learning_rate,
        "elapsed_s": round(epoch.elapsed_s, 3),
    }
    with (folder / _METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


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
    if (folder / _METRICS).exists() or (folder / _RUN).exists():
        raise RunError(f"out: {folder} holds a run already; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"out: cannot make {folder}: {error.strerror}") from error


def _blank_scaler(features: int) -> Scaler:
    """Filler until the weights, which hold the real one, are loaded."""
    blank = np.zeros(features, np.float32)
    return Scaler(blank, blank + 1, blank, blank, ())


def _shortest(values: Floats) -> list[float]:
    """The fewest digits that bring the same float32 back: 19.89, not 19.889999389648438."""
    return [float(str(value)) for value in values]


def _iso(time: np.datetime64) -> str:
    return str(time.astype("datetime64[s]"))
