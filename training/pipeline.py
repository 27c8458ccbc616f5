"""The whole way: data -> training -> graph -> parity gate -> scores -> a version on disk. What the commands call.

Prints nothing and knows no command line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import onnx

from training import card, curves, datasets, export, features, report, run
from training.baselines import season_steps
from training.calibration import calibrate
from training.checkpoint import Keeper
from training.data import Columns, column_names, read, write_csv
from training.errors import ChecksumMismatch, ModelUnreadable, RunError, SettingsError
from training.evaluate import evaluate
from training.fit import Epoch, Fitted, fit, history, reason_to_stop
from training.graph import Graph
from training.monitors import check_alarm
from training.network import Network, add_monitors, without_monitors
from training.scores import Scores
from training.series import Scaler, Series, Split, check_targets, fit_scaler, split_by_group, split_by_time
from training.settings import Architecture, Classify, Elapsed, Forecast, Request, Source
from training.verdict import verdict

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
    is_file = source.data not in datasets.DATASETS and (path.suffix or path.exists())
    known = None if is_file else datasets.dataset(source.data)
    source = _resolved(source)
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
    if known is None:
        return read(path, **columns)
    return read(datasets.fetch(source.data), name=known.name, units=known.units, **columns)


def _resolved(source: Source) -> Source:
    """The source with what a named set knows of itself."""
    known = datasets.DATASETS.get(source.data)
    if known is None:
        return source
    own = {"group": known.group, "split_by": known.split_by, "label": known.label}
    roles = {role: column if getattr(source, role) is None else getattr(source, role) for role, column in own.items()}
    # What tells rows apart is no sensor, also where it is not used.
    unused = {column for column in own.values() if column} - set(roles.values())
    exclude = (*source.exclude, *sorted(unused), *(() if source.columns else known.noise))
    return source.model_copy(update={"time": source.time or known.time, "exclude": exclude, **roles})


def made_features(source: Source, task: Literal["forecast", "classify"], horizons: Sequence[int]) -> list[str]:
    """The names of the features that the source wants to be made.

    Raises:
        SettingsError: the future of a column is wanted where nothing is forecast.
    """
    if source.known and task != "forecast":
        raise SettingsError("known: a class has no horizons; leave --known out, the columns are features as they are")
    return features.made_names(source.known, horizons, source.calendar, elapsed=source.elapsed)


def read_request(request: Request) -> Series:
    """Read what a request wants to learn from.

    Raises:
        TrainingError: see `read_source` and `made_features`.
    """
    return read_source(request.source, made_features(request.source, request.task, request.horizons))


def train(request: Request, on_epoch: Callable[[Epoch, Epoch], None], on_note: Callable[[str], None]) -> Published:
    """Learn, export, score and write a version.

    Afterwards the run folder and the version are on disk; after an error there is no version.

    Args:
        request: what to do; with `resume`, the run of that folder goes on from where it was stopped or killed.
        on_epoch: see `fit`.
        on_note: called with a sentence that the person should read.

    Raises:
        TrainingError: something that the person can mend.
    """
    resumed = request.resume
    begun = run.read(resumed) if resumed else None
    if resumed:
        request = run.resumed(resumed, request)
    # Before the minutes of work, not after them.
    version = export.free_version(request.models, request.name, request.version)
    series = read_request(request)
    if begun:
        _check_same(series, begun.facts)
    else:
        run.open_folder(request.out)
    with run.alone(request.out):
        keeper = Keeper(request.out)
        if begun:
            _take_up(begun, request, keeper)
        record, network = _learn(request, series, on_epoch, on_note, keeper=keeper)
        run.save(request.out, record, network)
        if request.held_out:
            write_csv(series, request.held_out, record.facts.held_out.spans)
        return publish(
            record, network, series, request.out, request.models, request.name, version=version, season=request.season
        )


def publish(
    record: run.Run,
    network: Network,
    series: Series,
    folder: Path,
    models: Path,
    name: str,
    *,
    version: int,
    season: int | None,
) -> Published:
    """Export a network, pass the gate, replay the held-out part through the graph, and write the version.

    Beside the graph stand its card and its report. `folder` is the run's: it knows how the learning went.

    Raises:
        ParityError: graph and network differ; nothing is written.
        VersionExists: the version is on disk already.
    """
    bare, parity, scores = _scored(record, network, series, name, season)
    told = card.facts(record, network, parity)
    # The same graph again with what it scored; the metadata does not touch the maths.
    description = export.describe(network, record.facts, scores.summary()) | {"training": card.in_metadata(told)}
    export.set_description(bare, description)
    content = bare.SerializeToString()
    made = card.make(
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        description=description,
        told=told,
        features=card.columns(record, network, series),
        scores=scores.as_json(),
        verdict=verdict(scores),
        history=run.read_metrics(folder),
        graph=content,
    )
    page = report.build(_material(made, Graph(content, name), series))
    return Published(export.write(models, name, version, content, made, page), record, scores, parity)


def learn_and_score(
    request: Request,
    series: Series,
    split: Split,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
) -> tuple[run.Run, Scores]:
    """Learn from a split of one's own and score its held-out part through the graph; writes the run folder, no version.

    Raises:
        TrainingError: something that the person can mend.
    """
    run.open_folder(request.out)
    record, network = _learn(request, series, on_epoch, on_note, split)
    run.save(request.out, record, network)
    _, _, scores = _scored(record, network, series, request.name, request.season)
    return record, scores


def _scored(
    record: run.Run, network: Network, series: Series, name: str, season: int | None
) -> tuple[onnx.ModelProto, export.Parity, Scores]:
    """The graph, past the gate, and what it scores on the held-out part."""
    bare = export.build_graph(network, export.describe(network, record.facts, scores={}))
    parity = export.check_parity(network, bare)
    graph = Graph(bare.SerializeToString(), name)
    return bare, parity, evaluate(graph, series, season=season, split=record.facts.split)


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
    _check_same(series, record.facts)
    return publish(record, network, series, folder, models, label, version=free, season=season)


def judge(model: Path, *, data: str | None, time: str | None, season: int | None) -> Scores:
    """Score a version on the held-out part that its card names, or on all rows of other data.

    Raises:
        ModelUnreadable: there is no model, or neither a card nor other data.
        TrainingError: the data cannot be used.
    """
    graph = Graph.load(model)
    told = export.read_card(model)
    if data is not None:
        source = _other(Source(data=data, time=time, columns=tuple(graph.features)), told)
    elif told is not None:
        source = Source.model_validate(told["source"])
    else:
        raise ModelUnreadable(f"data: {model} has no card.json that says what it was trained on; pass --data")
    series = read_source(source, [name for name in graph.features if features.can_make(name)])
    if told is None:
        return evaluate(graph, series, season=season)
    if told["data"]["sha256"] != series.sha256:
        return evaluate(graph, series, season=season, scales=told["scores"].get("mase_scale"))
    # The rows that the model has learned from say nothing about it, but the baselines learn from the same ones.
    return evaluate(graph, series, season=season, split=_split_of(told["data"]))


def report_again(model: Path, *, data: str | None) -> str:
    """The report of a version, made again from its card and its data.

    Args:
        model: the version's folder.
        data: where its data is now; where it was when None.

    Raises:
        ModelUnreadable: there is no model, or no card that a report can be made of.
        ChecksumMismatch: the data is no longer what the model learned from.
        TrainingError: the data cannot be used.
    """
    graph = Graph.load(model)
    told = export.read_card(model)
    if told is None or "history" not in told:
        raise ModelUnreadable(f"model: {model} has no card.json with what a report needs; export its run again")
    source = Source.model_validate(told["source"])
    source = source.model_copy(update={"data": data or source.data})
    series = read_source(source, [name for name in graph.features if features.can_make(name)])
    if series.sha256 != told["data"]["sha256"]:
        raise ChecksumMismatch(
            f"data: {series.name} has SHA-256 {series.sha256}, expected {told['data']['sha256']}, which the model learned "
            f"from; `tidegate evaluate` scores a model on other data"
        )
    return report.build(_material(told, graph, series))


def _material(told: dict[str, Any], graph: Graph, series: Series) -> report.Material:
    """What the report draws: the held-out part through the graph, and with faults in it where the graph looks for them."""
    split = _split_of(told["data"])
    replayed = curves.Replayed.of(graph, series, split.test)
    faulted = curves.Faulted.of(graph, series, split, replayed) if "score" in graph.outputs else None
    return report.Material(told, replayed, faulted)


def _other(source: Source, told: dict[str, Any] | None) -> Source:
    """Other data for a model: its group and label are where those of its own data were, if it has such columns."""
    if told is None or source.data in datasets.DATASETS:
        return source
    own = _resolved(Source.model_validate(told["source"]))
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


def _check_same(series: Series, facts: run.Facts) -> None:
    if series.sha256 != facts.sha256:
        raise ChecksumMismatch(
            f"data: {series.name} has SHA-256 {series.sha256}, expected {facts.sha256}, which the run learned from"
        )


def _take_up(begun: run.Begun | run.Run, request: Request, keeper: Keeper) -> None:
    """See that there is something left to learn, and bring `metrics.jsonl` back to the last checkpoint.

    Raises:
        RunError: the run is finished.
    """
    state = keeper.found()
    epochs, best = history(state) if state else ([], None)
    if isinstance(begun, run.Run) and best:
        reason = "diverged" if begun.outcome.stopped == "diverged" else reason_to_stop(request.fit, epochs[-1], best)
        if reason:
            raise RunError(
                f"resume: {request.out} is finished after epoch {len(epochs)}: {card.STOPPED[reason]}; {_MORE[reason]}"
            )
    run.write_metrics(request.out, epochs)


@dataclass(frozen=True)
class Prepared:
    """All that a fit needs beside its settings."""

    series: Series
    split: Split
    scaler: Scaler
    architecture: Architecture


def prepare(request: Request, series: Series, on_note: Callable[[str], None], split: Split | None = None) -> Prepared:
    """Split unless that is done, and scale a series, and say what to build for it.

    Raises:
        TrainingError: the series does not have what was asked for.
    """
    split = split or _split(request, series, on_note)
    scaler = fit_scaler(series, split.train)
    for name in scaler.constant:
        on_note(f"column {name!r} is constant in the training part: it teaches nothing and is left unscaled")
    return Prepared(series, split, scaler, _architecture(request, series, scaler))


def _learn(
    request: Request,
    series: Series,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
    split: Split | None = None,
    keeper: Keeper | None = None,
) -> tuple[run.Run, Network]:
    """Split unless that is done, scale, fit, and calibrate the monitors; without a keeper the run cannot be resumed."""
    prepared = prepare(request, series, on_note, split)
    facts = run.Facts.of(series, prepared.split, prepared.scaler)
    if keeper:
        run.begin(request.out, run.Begun(request=request, facts=facts))

    def told(epoch: Epoch, best: Epoch) -> None:
        run.append_metrics(request.out, epoch)
        on_epoch(epoch, best)

    bare = without_monitors(prepared.architecture)
    fitted = fit(series, prepared.split, prepared.scaler, bare, request.fit, told, keeper=keeper)
    run.write_metrics(request.out, fitted.epochs)  # Ctrl-C may have come between an epoch and its line
    on_note(_ending(fitted))
    if keeper and fitted.stopped == "interrupted":
        on_note(f"to go on: tidegate train --resume {request.out}")
    network = add_monitors(fitted.network, prepared.architecture)
    calibrate(network, series, prepared.split)
    record = run.Run(
        source=request.source,
        facts=facts,
        architecture=prepared.architecture,
        fit=request.fit,
        outcome=run.outcome(fitted),
        request=request if keeper else None,  # of a split of one's own a request knows nothing
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


# What makes a finished run go on.
_MORE = {
    "epochs": "raise --epochs to go on",
    "patience": "raise --patience to go on",
    "minutes": "raise --minutes to go on",
    "diverged": "train anew with a smaller --learning-rate",
}


def _ending(fitted: Fitted) -> str:
    """Why the training stopped, in words."""
    return (
        f"stopped after epoch {len(fitted.epochs)}: {card.STOPPED[fitted.stopped]}; "
        f"best validation score {fitted.best.score:.4f} in epoch {fitted.best.number} (1 = a naive guess)"
    )
