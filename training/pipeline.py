"""The whole way: data -> training -> graph -> parity gate -> scores -> a version on disk. What the commands call.

Prints nothing and knows no command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from training import datasets, export, features, run
from training.baselines import season_steps
from training.calibration import calibrate
from training.data import Columns, column_names, read, write_csv
from training.errors import ChecksumMismatch, ModelUnreadable, SettingsError
from training.evaluate import evaluate
from training.fit import Epoch, Fitted, fit
from training.graph import Graph
from training.monitors import check_alarm
from training.network import Network, add_monitors, without_monitors
from training.scores import Scores
from training.series import Scaler, Series, Split, check_targets, fit_scaler, split_by_group, split_by_time
from training.settings import Architecture, Classify, Elapsed, Forecast, Request, Source

# A note is a line: of many groups the first few are named.
NAMED = 5


@dataclass(frozen=True)
class Published:
    """A version on disk, what it scored on the held-out part, and how close graph and network are."""

    folder: Path
    run: run.Run
    scores: Scores
    parity: export.Parity


def read_source(source: Source, made: Sequence[str] = ()) -> Series:
    """Read a named data set or a file.

    Args:
        source: where it is and what its columns are; a named set knows its own time, group, label and what splits it,
            unless the source says otherwise (an empty name: none).
        made: features to make from others, see `features`.

    Raises:
        TrainingError: it is not there, cannot be fetched, or cannot be used.
    """
    path = Path(source.data)
    columns = Columns(
        time=source.time,
        period_s=source.period,
        group=source.group,
        split_by=source.split_by,
        label=source.label,
        columns=source.columns,
        exclude=source.exclude,
        made=made,
    )
    if source.data not in datasets.DATASETS and (path.suffix or path.exists()):
        return read(path, **columns)
    wanted = datasets.dataset(source.data)
    columns["time"] = source.time or wanted.time
    own = {"group": wanted.group, "split_by": wanted.split_by, "label": wanted.label}
    for role in ("group", "split_by", "label"):
        columns[role] = own[role] if getattr(source, role) is None else getattr(source, role)
    # What tells rows apart is no sensor, also where it is not used.
    unused = {column for column in own.values() if column} - {columns[role] for role in ("group", "split_by", "label")}
    columns["exclude"] = (*source.exclude, *sorted(unused), *(() if source.columns else wanted.noise))
    return read(datasets.fetch(source.data), name=wanted.name, units=wanted.units, **columns)


def made_features(source: Source, task: Literal["forecast", "classify"], horizons: Sequence[int]) -> list[str]:
    """The names of the features that the source wants to be made.

    Raises:
        SettingsError: the future of a column is wanted where nothing is forecast.
    """
    if source.known and task != "forecast":
        raise SettingsError("known: a class has no horizons; leave --known out, the columns are features as they are")
    return features.made_names(source.known, horizons, source.calendar, elapsed=source.elapsed)


def train(request: Request, on_epoch: Callable[[Epoch, Epoch], None], on_note: Callable[[str], None]) -> Published:
    """Learn, export, score and write a version.

    Afterwards the run folder and the version are on disk; after an error there is no version.

    Args:
        request: what to do.
        on_epoch: see `fit`.
        on_note: called with a sentence that the person should read.

    Raises:
        TrainingError: something that the person can mend.
    """
    # Before the minutes of work, not after them.
    version = export.free_version(request.models, request.name, request.version)
    series = read_source(request.source, made_features(request.source, request.task, request.horizons))
    run.open_folder(request.out)
    record, network = _learn(request, series, on_epoch, on_note)
    run.save(request.out, record, network)
    if request.held_out:
        write_csv(series, request.held_out, record.facts.held_out.spans)
    return publish(record, network, series, request.models, request.name, version=version, season=request.season)


def publish(
    record: run.Run, network: Network, series: Series, models: Path, name: str, *, version: int, season: int | None
) -> Published:
    """Export a network, pass the gate, replay the held-out part through the graph, and write the version with its card.

    Raises:
        ParityError: graph and network differ; nothing is written.
        VersionExists: the version is on disk already.
    """
    bare = export.build_graph(network, export.describe(network, record.facts, scores={}))
    parity = export.check_parity(network, bare)
    graph = Graph(bare.SerializeToString(), name)
    scores = evaluate(graph, series, season=season, split=record.facts.split)
    # The same graph again with what it scored; the metadata does not touch the maths.
    description = export.describe(network, record.facts, scores.summary())
    export.set_description(bare, description)
    card = _card(record, description, scores, parity, name, version)
    return Published(export.write(models, name, version, bare, card), record, scores, parity)


def export_run(
    folder: Path, models: Path, *, data: str | None, name: str | None, version: int | None, season: int | None
) -> Published:
    """Publish the network of a run folder again.

    Args:
        folder: what `train` wrote.
        models: where versions go.
        data: where the run's data is now; where it was when None.
        name: of the model; the data's when None.
        version: to write; the next free one when None.
        season: see `evaluate`.

    Raises:
        ChecksumMismatch: the data is no longer what the run learned from.
        TrainingError: the run or the data cannot be used.
    """
    record, network = run.load(folder)
    label = name or Path(record.source.data).stem
    free = export.free_version(models, label, version)
    source = record.source.model_copy(update={"data": data or record.source.data})
    series = read_source(source, [name for name in record.facts.features if features.can_make(name)])
    if series.sha256 != record.facts.sha256:
        raise ChecksumMismatch(
            f"data: {series.name} has SHA-256 {series.sha256}, expected {record.facts.sha256}, which the run learned from"
        )
    return publish(record, network, series, models, label, version=free, season=season)


def judge(model: Path, *, data: str | None, time: str | None, season: int | None) -> Scores:
    """Score a version on the held-out part that its card names, or on all rows of other data.

    Raises:
        ModelUnreadable: there is no model, or neither a card nor other data.
        TrainingError: the data cannot be used.
    """
    graph = Graph.load(model)
    card = export.read_card(model)
    if data is not None:
        source = _other(Source(data=data, time=time, columns=tuple(graph.features)), card)
    elif card is not None:
        source = Source.model_validate(card["source"])
    else:
        raise ModelUnreadable(f"data: {model} has no card.json that says what it was trained on; pass --data")
    series = read_source(source, [name for name in graph.features if features.can_make(name)])
    if card is None:
        return evaluate(graph, series, season=season)
    if card["data"]["sha256"] != series.sha256:
        return evaluate(graph, series, season=season, scales=card["scores"].get("mase_scale"))
    # The rows that the model has learned from say nothing about it, but the baselines learn from the same ones.
    return evaluate(graph, series, season=season, split=_split_of(card["data"]))


def _other(source: Source, card: dict[str, Any] | None) -> Source:
    """Other data for a model: its group and label are where those of its own data were, if it has such columns."""
    if card is None or source.data in datasets.DATASETS:
        return source
    own = Source.model_validate(card["source"])
    there = column_names(Path(source.data))
    return source.model_copy(
        update={
            "period": own.period,
            "group": own.group if own.group in there else None,
            "label": own.label if own.label in there else None,
        }
    )


def _split(request: Request, series: Series, on_note: Callable[[str], None]) -> Split:
    """Whole values of the column to split by where there is one, else by time."""
    horizon = max(request.horizons) if request.task == "forecast" else 0
    train, validation = request.train_share, request.validation_share
    if train + validation >= 1:
        raise SettingsError(
            f"train-share, validation-share: got {train:g} and {validation:g}, expected less than 1 together: what they "
            f"leave is held out"
        )
    if any(group.whole for group in series.groups):
        return split_by_group(
            series,
            train=train,
            validation=validation,
            seed=request.split_seed,
            hold_out=request.hold_out,
            horizon=horizon,
        )
    if request.hold_out:
        raise SettingsError(
            f"hold-out: got {', '.join(request.hold_out)} but the data is split by time; name the column that has these "
            f"values with --split-by"
        )
    split = split_by_time(series, train=train, validation=validation, horizon=horizon)
    if split.short:
        named = ", ".join(split.short[:NAMED]) + (", ..." if len(split.short) > NAMED else "")
        on_note(f"too short to be cut, so they only teach: {len(split.short)} of {len(series.groups)} groups ({named})")
    return split


def _learn(
    request: Request, series: Series, on_epoch: Callable[[Epoch, Epoch], None], on_note: Callable[[str], None]
) -> tuple[run.Run, Network]:
    """Split, scale, fit, and calibrate the monitors."""
    split = _split(request, series, on_note)
    scaler = fit_scaler(series, split.train)
    for name in scaler.constant:
        on_note(f"column {name!r} is constant in the training part: it teaches nothing and is left unscaled")
    architecture = _architecture(request, series, scaler)

    def told(epoch: Epoch, best: Epoch) -> None:
        run.append_metrics(request.out, epoch)
        on_epoch(epoch, best)

    fitted = fit(series, split, scaler, without_monitors(architecture), request.fit, told)
    on_note(_ending(fitted))
    network = add_monitors(fitted.network, architecture)
    calibrate(network, series, split)
    record = run.Run(
        source=request.source,
        facts=run.Facts.of(series, split, scaler),
        architecture=architecture,
        fit=request.fit,
        outcome=run.outcome(fitted),
    )
    return record, network


def _architecture(request: Request, series: Series, scaler: Scaler) -> Architecture:
    """What to build for this series."""
    task: Forecast | Classify
    if request.task == "classify":
        task = Classify(classes=series.classes)
    else:
        targets = request.target or _usual_targets(request.source)
        check_targets(series, scaler, targets)
        _check_future(request.source, targets)
        task = Forecast(
            targets=tuple(series.column(target) for target in targets),
            horizons=request.horizons,
            quantiles=request.quantiles,
            links=request.links,
            season=request.season or season_steps(series.period_s) or 0,
            coverage=request.coverage,
            alarm_rate=request.alarm_rate,
        )
        check_alarm(task)
    return Architecture(features=len(series.names), task=task, elapsed=_elapsed(series), **request.shape.model_dump())


def _elapsed(series: Series) -> Elapsed | None:
    """What the seconds since the last timestep mean, if they are a feature."""
    if features.ELAPSED not in series.names:
        return None
    return Elapsed(feature=series.column(features.ELAPSED), usual_s=series.usual_s, reset_s=series.gap_s)


def _check_future(source: Source, targets: Sequence[str]) -> None:
    """What is made from others, or whose future is given, is not there to be forecast."""
    for target in targets:
        if target in source.known:
            raise SettingsError(
                f"known: {target!r} is a target as well, expected other columns: its future is what is to be forecast"
            )
        if features.can_make(target):
            raise SettingsError(
                f"target: {target!r} is made from the time or from another column; expected a measured one"
            )


def _usual_targets(source: Source) -> tuple[str, ...]:
    if source.data not in datasets.DATASETS:
        raise SettingsError("target: a file has no usual target; name the column to forecast with --target")
    usual = datasets.DATASETS[source.data].target
    if not usual:
        raise SettingsError(
            f"target: {source.data} is there to be classified; ask for --task classify, or name a --target"
        )
    return (usual,)


def _split_of(data: dict[str, Any]) -> Split:
    """The split that a card tells of."""
    parts = (data[part]["spans"] for part in ("training", "validation", "held_out"))
    train, validation, held_out = (tuple((first, end) for first, end in spans) for spans in parts)
    return Split(train, validation, held_out)


def _ending(fitted: Fitted) -> str:
    """Why the training stopped, in words."""
    reasons = {
        "epochs": "all epochs are done",
        "patience": "the validation score has not improved for a while",
        "minutes": "the time is up",
        "interrupted": "interrupted: the best weights so far are kept",
        "diverged": "the loss is no longer a number: the best weights before that are kept",
    }
    return (
        f"stopped after epoch {len(fitted.epochs)}: {reasons[fitted.stopped]}; "
        f"best validation score {fitted.best.score:.4f} in epoch {fitted.best.number} (1 = a naive guess)"
    )


def _card(
    record: run.Run, description: dict[str, Any], scores: Scores, parity: export.Parity, name: str, version: int
) -> dict[str, Any]:
    """The model card: what `card.json` tells people and programs."""
    facts = record.facts
    return {
        "name": name,
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "description": description | {"scores": {}},  # they stand below, once
        "source": record.source.model_dump(),
        "data": {
            "name": facts.name,
            "sha256": facts.sha256,
            "rows": facts.rows,
            "training": facts.training.model_dump(),
            "validation": facts.validation.model_dump(),
            "held_out": facts.held_out.model_dump(),
        }
        | _provenance(record.source),
        "settings": {"network": record.architecture.model_dump(), "fit": record.fit.model_dump()},
        "outcome": record.outcome.model_dump(),
        "scores": scores.as_json(),
        "parity": asdict(parity),
        "made_with": {
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": metadata.version("onnxruntime"),
        },
    }


def _provenance(source: Source) -> dict[str, str]:
    known = datasets.DATASETS.get(source.data)
    return {"source": known.source, "licence": known.licence} if known else {}
