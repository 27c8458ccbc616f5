"""A run: the folder that a training leaves behind.

`run.json` holds the request and, at the end, the outcome. `metrics.jsonl` has a line for each epoch. `best.pt` holds the
best weights, `last.pt` the whole state of the training. The folder is enough to resume the training, and to build and
export the same network again.
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
from pydantic import Field, TypeAdapter

from tidegate.training.data.gaps import Absence, absence
from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import Floats, Series, Spans, count_rows
from tidegate.training.data.split import Split
from tidegate.training.errors import RunError
from tidegate.training.learning import checkpoint
from tidegate.training.learning.correction import Correction
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.fit import FitResult
from tidegate.training.network.network import Network, build_network, without_monitors
from tidegate.training.outputs import naming, replace_file
from tidegate.training.settings import Architecture, Fit, Forecast, Request, Settings, Source, name_of

RUN, _METRICS = "run.json", "metrics.jsonl"
SettingsT = TypeVar("SettingsT", bound=Settings)


class Part(Settings):
    """One part of a split: its rows, their earliest and latest time, and the values of the column to split by, if any.

    Of a table with groups `groups`, `starts` and `ends` have the name and the times of each span.
    """

    spans: Spans
    rows: int
    start: str
    end: str
    wholes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    @classmethod
    def of(cls, series: Series, spans: Spans) -> Self:
        """Describe a part."""
        names = [series.group_at(first).name for first, _ in spans] if series.groups else []
        return cls(
            spans=spans,
            rows=count_rows(spans),
            start=series.stamp(min(series.times[first] for first, _ in spans)),
            end=series.stamp(max(series.times[end - 1] for _, end in spans)),
            wholes=tuple(
                dict.fromkeys(
                    group.split_key for group in series.groups if group.split_key and (group.first, group.end) in spans
                )
            ),
            groups=tuple(names),
            starts=tuple(series.stamp(series.times[first]) for first, _ in spans) if names else (),
            ends=tuple(series.stamp(series.times[end - 1]) for _, end in spans) if names else (),
        )


class DataFacts(Settings):
    """What the model records of the series that it was trained on."""

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
    absent: Absence | None = None
    group_column: str = ""
    # The words of a feature that was text, by its name.
    categories: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @classmethod
    def of(cls, series: Series, split: Split, scaler: Scaler) -> Self:
        """Describe a series, its split and its training part."""
        return cls(
            name=series.name,
            sha256=series.sha256,
            rows=len(series),
            groups=max(len(series.groups), 1),
            period_s=series.period_s,
            features=series.names,
            units=series.units,
            low=tuple(_shortest_floats(scaler.low)),
            high=tuple(_shortest_floats(scaler.high)),
            training=Part.of(series, split.train),
            validation=Part.of(series, split.validation),
            held_out=Part.of(series, split.test),
            absent=absence(series),
            group_column=series.group_column,
            categories=series.categories,
        )

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by their names in the card."""
        return {"training": self.training, "validation": self.validation, "held_out": self.held_out}

    @property
    def split(self) -> Split:
        """The split of the series."""
        return Split(self.training.spans, self.validation.spans, self.held_out.spans)


class Outcome(Settings):
    """The outcome of a training. `best_score` is in the unit of the objective, see `objective`.

    `gain` is what the network adds to its linear link, see `correction`, and `corrections_kept` for how many forecasts.
    """

    epochs: int
    best_epoch: int
    best_score: float
    seconds: float
    stopped: str
    threads: int
    torch: str
    device: str = "cpu"
    gain: float | None = None
    corrections_kept: int | None = None


class StartedRun(Settings):
    """A training that has not ended: it runs, or it was killed. `architecture` is None until all of it is chosen."""

    state: Literal["running"] = "running"
    request: Request
    facts: DataFacts
    architecture: Architecture | None = None


class Run(Settings):
    """Everything about a training except the weights. A resume needs `request`."""

    state: Literal["done"] = "done"
    source: Source
    facts: DataFacts
    architecture: Architecture
    fit: Fit
    outcome: Outcome
    request: Request | None = None


_EITHER: TypeAdapter[StartedRun | Run] = TypeAdapter(Annotated[StartedRun | Run, Field(discriminator="state")])


def outcome(result: FitResult, correction: Correction | None = None) -> Outcome:
    """The outcome of a training."""
    return Outcome(
        epochs=len(result.epochs),
        best_epoch=result.best.number,
        best_score=result.best.score,
        seconds=round(result.epochs[-1].elapsed_s, 3),
        stopped=result.stopped,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        device=result.device,
        gain=round(correction.gain, 6) if correction else None,
        corrections_kept=int((correction.kept > 0).sum()) if correction else None,
    )


def save_started(folder: Path, started: StartedRun) -> None:
    """Write `run.json` before the first epoch, so that a killed training can be resumed."""
    replace_file(folder / RUN, _json(started))


def save(folder: Path, run: Run, network: Network) -> None:
    """Write `run.json` and `best.pt`; create the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / checkpoint.BEST, network.state_dict())
    replace_file(folder / RUN, _json(run))


def load(folder: Path) -> tuple[Run, Network]:
    """Read the folder of a finished run and build its network, ready for the export.

    Where `alarm_is_old`, the network comes without its monitors.

    Raises:
        RunError: the run is not finished, or a file is missing or damaged.
    """
    run = read(folder)
    if isinstance(run, StartedRun):
        raise RunError(f"run: {folder} is not done; go on with `tidegate train --resume {folder}`, which exports it")
    weights = checkpoint.load(folder / checkpoint.BEST)
    architecture = run.architecture
    if alarm_is_old(architecture):
        architecture = without_monitors(architecture)
        weights = {name: part for name, part in weights.items() if not name.startswith("monitors.")}
    network = build_network(architecture, _blank_scaler(architecture.features), seed=0)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise checkpoint.damaged(folder / checkpoint.BEST, error) from error
    network.eval()
    return run, network


def alarm_is_old(architecture: Architecture) -> bool:
    """Whether it has an alarm from before its times were settings: the buffers of such an alarm have to be fitted anew."""
    task = architecture.task
    return isinstance(task, Forecast) and task.alarm_rate is not None and task.alarm_times is None


def read(folder: Path) -> StartedRun | Run:
    """Read `run.json`.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / RUN
    try:
        return _EITHER.validate_python(_with_old_defaults(json.loads(path.read_bytes())))
    except OSError as error:
        raise RunError(
            f"run: cannot read {path}: {error.strerror}; expected a folder that `tidegate train` wrote"
        ) from error
    except ValueError as error:  # no JSON, or not what is expected
        raise checkpoint.damaged(path, error) from error


def how_to_go_on(folder: Path) -> str:
    """What to type after a training in this folder was stopped: by Ctrl-C, by a full disk, or by a kill."""
    if not (folder / RUN).is_file():
        return "nothing was saved: the same command begins anew"
    started = read(folder)
    if isinstance(started, StartedRun) or started.outcome.stopped == "interrupted":
        return f"to go on: tidegate train --resume {folder}"
    return f"it is trained; to export it: tidegate export {folder}"


def _with_old_defaults(content: Any) -> Any:
    """The content of `run.json`. A run from before gaps were filled was trained without that."""
    for part in (content, content.get("request") or {}) if isinstance(content, dict) else ():
        if isinstance(part.get("source"), dict):
            part["source"].setdefault("fill_gaps", 0)
    return content


# The settings that a resumed training may change. Any other would make it another training.
_MAY_CHANGE = {"data", "epochs", "minutes", "patience", "device", "models", "version", "held_out"}
# These are filled in when the user gives none, so a difference means nothing.
_FILLED_IN = {"name", "out", "resume"}


def resumed(folder: Path, typed: Request) -> Request:
    """The request of the run in a folder, with the typed settings that may change.

    Raises:
        RunError: there is no run to resume, or a typed setting may not change.
    """
    request = read(folder).request
    if request is None:
        raise RunError(f"resume: {folder} has no request in its run.json; train again")
    usual = Request(source=Source(), name=request.name, out=folder)
    parts = {
        part: _merge_typed(getattr(request, part), getattr(typed, part), getattr(usual, part))
        for part in ("source", "shape", "fit")
    }
    return _merge_typed(request, typed, usual).model_copy(update={**parts, "out": folder, "resume": None})


# What a training with a warm start may differ in: where the rows are, and which of them it learns from.
_MAY_DIFFER = {"data", "models", "version", "held_out", "train_share", "validation_share", "hold_out", "validate_on"}


def warm_started(kept: Request, typed: Request) -> Request:
    """The request of a run whose weights another training begins with, with the typed settings of that training.

    Raises:
        RunError: a typed setting belongs to the network or to the columns, which are fixed.
    """
    usual = Request(source=Source(), name=typed.name, out=typed.out)
    parts = {
        part: _merge_typed(getattr(kept, part), getattr(typed, part), getattr(usual, part), _MAY_DIFFER, "warm-start")
        for part in ("source", "shape")
    }
    # By default the name is that of the data; then the model gets its next version.
    name = kept.name if typed.name == name_of(typed.source.data) else typed.name
    own = {"fit": typed.fit, "name": name, "out": typed.out, "warm_start": typed.warm_start, "resume": None}
    return _merge_typed(kept, typed, usual, _MAY_DIFFER | {"warm_start"}, "warm-start").model_copy(update=parts | own)


def _merge_typed(
    kept: SettingsT, typed: SettingsT, usual: SettingsT, may_change: set[str] = _MAY_CHANGE, option: str = "resume"
) -> SettingsT:
    """The kept settings, updated with the typed ones that may change."""
    for name in type(kept).model_fields:
        value = getattr(typed, name)
        if isinstance(value, Settings) or name in may_change | _FILLED_IN:
            continue
        if value not in (getattr(usual, name), getattr(kept, name)):
            word = name.replace("_", "-")
            raise RunError(
                f"{word}: got {value!r}, but the run was begun with {getattr(kept, name)!r}, which cannot change: "
                f"leave --{word} out, or train anew without --{option}"
            )
    return kept.model_copy(update={name: getattr(typed, name) for name in typed.model_fields_set & may_change})


def append_metrics(folder: Path, epoch: Epoch) -> None:
    """Append a line to `metrics.jsonl`."""
    path = folder / _METRICS
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(epoch))


def write_metrics(folder: Path, epochs: Sequence[Epoch]) -> None:
    """Rewrite `metrics.jsonl`: a kill may have left half a line, or epochs that no checkpoint holds."""
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
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder, so that one process at a time trains in it.

    Raises:
        RunError: another process holds the lock.
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
    """The lines of `metrics.jsonl`, one for each epoch; none if there is no such file."""
    path = folder / _METRICS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def open_folder(folder: Path) -> None:
    """Create the folder of a new run.

    Raises:
        RunError: the folder holds a run already; a run is never overwritten.
    """
    if (folder / _METRICS).exists() or (folder / RUN).exists():
        raise RunError(f"out: {folder} holds a run already; choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"out: cannot make {folder}: {error.strerror}") from error


def _json(settings: Settings) -> bytes:
    return (settings.model_dump_json(indent=2) + "\n").encode()


def _blank_scaler(features: int) -> Scaler:
    """A placeholder until the weights are loaded, which hold the real scaler."""
    blank = np.zeros(features, np.float32)
    return Scaler(blank, blank + 1, blank, blank, blank + 1, ())


def _shortest_floats(values: Floats) -> list[float]:
    """The fewest digits that give the same float32: 19.89, not 19.889999389648438."""
    return [float(str(value)) for value in values]
