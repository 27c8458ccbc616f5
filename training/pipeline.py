"""The whole way: data -> training -> graph -> parity gate -> scores -> a version on disk. What the commands call.

Prints nothing and knows no command line.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import torch

from training import datasets, export, run
from training.baselines import season_steps
from training.calibration import calibrate
from training.data import read, write_csv
from training.errors import ChecksumMismatch, ModelUnreadable, SettingsError
from training.evaluate import Graph, Scores, evaluate
from training.fit import Epoch, Fitted, fit
from training.monitors import check_alarm
from training.network import Network, add_monitors, without_monitors
from training.series import Scaler, Series, check_targets, fit_scaler, split_by_time
from training.settings import Architecture, Classify, Forecast, Request, Source


@dataclass(frozen=True)
class Published:
    """A version on disk, what it scored on the held-out part, and how close graph and network are."""

    folder: Path
    run: run.Run
    scores: Scores
    parity: export.Parity


def read_source(source: Source) -> Series:
    """Read a named data set or a file.

    Raises:
        TrainingError: it is not there, cannot be fetched, or cannot be used.
    """
    path = Path(source.data)
    if source.data not in datasets.DATASETS and (path.suffix or path.exists()):
        return read(path, time=source.time, columns=source.columns, exclude=source.exclude)
    wanted = datasets.dataset(source.data)
    return read(
        datasets.fetch(source.data),
        name=wanted.name,
        time=source.time or wanted.time,
        columns=source.columns,
        exclude=source.exclude if source.columns else (*source.exclude, *wanted.noise),
        units=wanted.units,
    )


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
    series = read_source(request.source)
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
    scores = evaluate(graph, series, record.facts.held_out.spans, season=season)
    # The same graph again with what it scored; the metadata does not touch the maths.
    description = export.describe(network, record.facts, scores.as_json())
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
    series = read_source(record.source.model_copy(update={"data": data or record.source.data}))
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
        source = Source(data=data, time=time, columns=tuple(graph.features))
    elif card is not None:
        source = Source.model_validate(card["source"])
    else:
        raise ModelUnreadable(f"data: {model} has no card.json that says what it was trained on; pass --data")
    series = read_source(source)
    spans = None
    if card is not None and card["data"]["sha256"] == series.sha256:
        # The rows that the model has learned from say nothing about it.
        spans = tuple((first, end) for first, end in card["data"]["held_out"]["spans"])
    return evaluate(graph, series, spans, season=season)


def _learn(
    request: Request, series: Series, on_epoch: Callable[[Epoch, Epoch], None], on_note: Callable[[str], None]
) -> tuple[run.Run, Network]:
    """Split, scale, fit, and calibrate the monitors."""
    split = split_by_time(
        series, train=request.train_share, validation=request.validation_share, horizon=max(request.horizons)
    )
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
    return Architecture(features=len(series.names), task=task, **request.shape.model_dump())


def _usual_targets(source: Source) -> tuple[str, ...]:
    if source.data not in datasets.DATASETS:
        raise SettingsError("target: a file has no usual target; name the column to forecast with --target")
    return (datasets.DATASETS[source.data].target,)


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
