"""The whole way: data -> training -> graph -> parity gate -> scores -> a version on disk. What the commands call.

Prints nothing and knows no command line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

from training.data import features
from training.data.prepare import prepare
from training.data.series import Series
from training.data.source import other_source, read_request, read_source
from training.data.split import Split
from training.data.write import write_csv
from training.errors import ChecksumMismatch, ModelUnreadable, RunError
from training.judging.evaluate import evaluate
from training.judging.graph import Graph
from training.judging.scores import Scores
from training.judging.verdict import verdict
from training.learning import run
from training.learning.calibration import calibrate
from training.learning.checkpoint import Keeper
from training.learning.fit import Epoch, Fitted, fit, history, reason_to_stop
from training.network.network import Network, add_monitors, without_monitors
from training.publishing import card, curves, export, report
from training.publishing.parity import Parity, check_parity
from training.publishing.version import free_version, read_card, write_version
from training.settings import Request, Source


@dataclass(frozen=True)
class Published:
    """A version on disk, what it scored on the held-out part, and how close graph and network are."""

    folder: Path
    run: run.Run
    scores: Scores
    parity: Parity


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
    version = free_version(request.models, request.name, request.version)
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
    return Published(write_version(models, name, version, content, made, page), record, scores, parity)


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
) -> tuple[onnx.ModelProto, Parity, Scores]:
    """The graph, past the gate, and what it scores on the held-out part."""
    bare = export.build_graph(network, export.describe(network, record.facts, scores={}))
    parity = check_parity(network, bare)
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
    free = free_version(models, label, version)
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
    told = read_card(model)
    if data is not None:
        source = other_source(Source(data=data, time=time, columns=tuple(graph.features)), told)
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
    told = read_card(model)
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
    on_note(_ending(fitted, request.fit.keep))
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


def _ending(fitted: Fitted, keep: str) -> str:
    """Why the training stopped, and whose weights were kept, in words."""
    which = "best" if keep == "best" else "last weights kept,"
    return (
        f"stopped after epoch {len(fitted.epochs)}: {card.STOPPED[fitted.stopped]}; "
        f"{which} validation score {fitted.best.score:.4f} in epoch {fitted.best.number} (1 = a naive guess)"
    )
