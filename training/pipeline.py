"""The pipeline that the commands call: data -> training -> graph -> parity gate -> scores -> a version on disk.

This module prints nothing and knows no command line.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx

from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.data.prepare import Prepared, prepare
from tidegate.training.data.series import Series, count_rows
from tidegate.training.data.source import read_request, read_source
from tidegate.training.data.split import Split
from tidegate.training.data.write import write_csv
from tidegate.training.errors import ChecksumMismatch, RunError
from tidegate.training.judging.evaluate import Judged, judge
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.ridge import Ridge
from tidegate.training.judging.scores import Scores
from tidegate.training.judging.verdict import verdict
from tidegate.training.learning import run
from tidegate.training.learning.calibration import calibrate
from tidegate.training.learning.checkpoint import Checkpointer
from tidegate.training.learning.choice import after_trials, choose_level, needs_trials
from tidegate.training.learning.correction import Correction, settle
from tidegate.training.learning.epoch import Epoch
from tidegate.training.learning.fit import FitResult, fit, history, reason_to_stop
from tidegate.training.learning.links import Given, prepare_links
from tidegate.training.learning.parting import parting
from tidegate.training.learning.warm_start import WarmStart
from tidegate.training.network.network import Network, add_monitors, without_monitors
from tidegate.training.publishing import card, export, report
from tidegate.training.publishing.parity import Parity, check_parity
from tidegate.training.publishing.version import free_version, write_version
from tidegate.training.settings import Architecture, Request, name_of


@dataclass(frozen=True)
class Published:
    """A version on disk, its run, its scores on the held-out part, and the parity of graph and network."""

    folder: Path
    run: run.Run
    scores: Scores
    parity: Parity


def train(
    request: Request,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
    prepared: Prepared | None = None,
) -> Published:
    """Train, export, score and write a version.

    Afterwards the run folder and the version are on disk. After an error there is no version.

    Args:
        request: of the training. With `resume` the run of that folder goes on where it was stopped or killed.
        on_epoch: see `fit`.
        on_note: called with a sentence for the user.
        prepared: what `prepare` made of the request, if that is done already.

    Raises:
        TrainingError: a problem that the user can solve.
    """
    resumed = request.resume
    begun = run.read(resumed) if resumed else None
    if resumed:
        request = run.resumed(resumed, request)
    start = WarmStart.load(request.warm_start) if request.warm_start else None
    if start and not resumed:
        request = start.request(request)
    # Checked before the training, not after it.
    version = free_version(request.models, request.name, request.version)
    if not prepared:
        series = read_request(request)
        if begun:
            _check_same(series, begun.facts)
        prepared = prepare(request, series, on_note)
    if not begun:
        run.open_folder(request.out)
    if start:
        prepared = start.apply(prepared)
    series = prepared.series
    with run.exclusive(request.out):
        checkpointer = Checkpointer(request.out)
        if begun:
            _resume(begun, request, checkpointer)
        chosen = begun.architecture if begun else None
        record, network, ridge = _train(request, prepared, on_epoch, on_note, checkpointer, start, chosen)
        run.save(request.out, record, network)
        if request.held_out:
            write_csv(series, request.held_out, record.facts.held_out.spans)
        return publish(
            record,
            network,
            series,
            request.out,
            request.models,
            request.name,
            version=version,
            season=request.season,
            on_note=on_note,
            ridge=ridge,
        )


def publish(  # noqa: PLR0913  a version brings everything together
    record: run.Run,
    network: Network,
    series: Series,
    folder: Path,
    models: Path,
    name: str,
    *,
    version: int,
    season: int | None,
    on_note: Callable[[str], None] = lambda _: None,
    ridge: Ridge | None = None,
) -> Published:
    """Export a network, check its parity, score it on the held-out part, and write graph, card and report.

    `folder` is that of the run, which has the metrics of the training. `on_note` gets a sentence about what is done now. `ridge` is the
    regression of the linear link, if it was solved just now for the same season.

    Raises:
        ParityError: graph and network differ; nothing is written.
        VersionExists: the version is on disk already.
    """
    series = series.select(record.facts.features)
    bare, parity, judged = _scored(record, network, series, name, season, on_note, ridge)
    scores = judged.scores
    facts = card.training_facts(record, network, parity)
    # The same graph, with its scores in the metadata, which do not change its outputs.
    description = export.describe(network, record.facts, scores.summary()) | {"training": card.metadata_facts(facts)}
    export.set_description(bare, description)
    content = bare.SerializeToString()
    model_card = card.make_card(
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        description=description,
        facts=facts,
        features=card.feature_statistics(record, network, series),
        scores=scores.as_json(),
        verdict=verdict(scores),
        history=run.read_metrics(folder),
        run=str(folder),
        graph=content,
    )
    page = report.build(report.ReportContent(model_card, judged.replay, judged.faulty))
    return Published(write_version(models, name, version, content, model_card, page), record, scores, parity)


def train_and_score(
    request: Request,
    series: Series,
    split: Split,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
) -> tuple[run.Run, Scores]:
    """Train on a given split and score the graph on its held-out part; write the run folder, but no version.

    Raises:
        TrainingError: a problem that the user can solve.
        KeyboardInterrupt: the user stopped the training.
    """
    prepared = prepare(request, series, on_note, split)
    run.open_folder(request.out)
    record, network, ridge = _train(request, prepared, on_epoch, on_note)
    if record.outcome.stopped == "interrupted":
        raise KeyboardInterrupt  # scores of half a training do not compare with those of whole ones
    run.save(request.out, record, network)
    *_, judged = _scored(record, network, series, request.name, request.season, ridge=ridge)
    return record, judged.scores


def _scored(
    record: run.Run,
    network: Network,
    series: Series,
    name: str,
    season: int | None,
    on_note: Callable[[str], None] = lambda _: None,
    ridge: Ridge | None = None,
) -> tuple[onnx.ModelProto, Parity, Judged]:
    """The graph after the parity gate, and its scores on the held-out part."""
    series = series.select(record.facts.features)
    on_note("exporting, and comparing the graph with the network")
    bare = export.build_graph(network, export.describe(network, record.facts, scores={}))
    parity = check_parity(network, bare)
    graph = Graph(bare.SerializeToString(), name)
    judged = judge(graph, series, season=season, split=record.facts.split, ridge=ridge, on_note=on_note)
    return bare, parity, judged


def export_run(
    folder: Path, models: Path, *, data: str | None, name: str | None, version: int | None, season: int | None
) -> Published:
    """Publish the network of a run folder again.

    Args:
        folder: of the run.
        models: the folder of models.
        data: the present place of the data; by default its place in the training.
        name: of the model; by default that of the data.
        version: to write; by default the next free one.
        season: see `evaluate`.

    Raises:
        ChecksumMismatch: the data has changed since the training.
        TrainingError: the run or the data cannot be used.
    """
    record, network = run.load(folder)
    label = name or name_of(record.source.data)
    free = free_version(models, label, version)
    source = record.source.model_copy(update={"data": data or record.source.data})
    series = read_source(source, record.facts.features, words=record.facts.categories)
    _check_same(series, record.facts)
    if run.alarm_is_old(record.architecture):
        record, network = _with_new_alarm(record, network, series)
    return publish(record, network, series, folder, models, label, version=free, season=season)


def _check_same(series: Series, facts: run.DataFacts) -> None:
    if series.sha256 != facts.sha256:
        raise ChecksumMismatch(
            f"data: {series.name} has SHA-256 {series.sha256}, expected {facts.sha256}, on which the run was trained"
        )


def _with_new_alarm(record: run.Run, network: Network, series: Series) -> tuple[run.Run, Network]:
    """The run, and its network with monitors as this version makes them, fitted to the series of the training."""
    task, split = record.architecture.task, record.facts.split
    times = alarm_times(count_rows(split.train + split.validation), series.period_s)
    architecture = record.architecture.model_copy(update={"task": task.model_copy(update={"alarm_times": times})})
    watched = add_monitors(network, architecture)
    calibrate(watched, series, split)
    return record.model_copy(update={"architecture": architecture}), watched


def _resume(begun: run.StartedRun | run.Run, request: Request, checkpointer: Checkpointer) -> None:
    """Check that the run is not finished, and restore `metrics.jsonl` to the last checkpoint.

    Raises:
        RunError: the run is finished.
    """
    state = checkpointer.load()
    epochs, best = history(state) if state else ([], None)
    if isinstance(begun, run.Run) and best:
        reason = "diverged" if begun.outcome.stopped == "diverged" else reason_to_stop(request.fit, epochs[-1], best)
        if reason:
            raise RunError(
                f"resume: {request.out} is finished after epoch {len(epochs)}: {card.STOP_REASONS[reason]}; {_RESUME_ADVICE[reason]}"
            )
    run.write_metrics(request.out, epochs)


def _train(
    request: Request,
    prepared: Prepared,
    on_epoch: Callable[[Epoch, Epoch], None],
    on_note: Callable[[str], None],
    checkpointer: Checkpointer | None = None,
    start: WarmStart | None = None,
    chosen: Architecture | None = None,
) -> tuple[run.Run, Network, Ridge | None]:
    """Fit, and calibrate the monitors; and the regression of the linear link, which is the baseline too.

    Without a checkpointer the run cannot be resumed; `chosen` is what was resumed.
    """
    series = prepared.series
    facts = run.DataFacts.of(series, prepared.split, prepared.scaler)
    started = run.StartedRun(request=request, facts=facts, architecture=chosen)
    if checkpointer:
        run.save_started(request.out, started)

    def record_epoch(epoch: Epoch, best: Epoch) -> None:
        run.append_metrics(request.out, epoch)
        on_epoch(epoch, best)

    # A warm start has the regression of the earlier run, whose units its weights have.
    given = (
        Given(prepared.architecture, None, start.weights) if start else _complete(request, prepared, on_note, chosen)
    )
    if checkpointer:
        run.save_started(request.out, started.model_copy(update={"architecture": given.architecture}))
    bare = replace(given, architecture=without_monitors(given.architecture))
    tried = prepared.architecture.level == "auto" and not chosen and not start and needs_trials(given)
    settings = after_trials(request.fit) if tried else request.fit
    result = fit(
        series,
        prepared.split,
        prepared.scaler,
        bare.architecture,
        settings,
        record_epoch,
        checkpointer=checkpointer,
        given=bare,
    )
    run.write_metrics(request.out, result.epochs)  # Ctrl-C may have come between an epoch and its line
    on_note(_stop_note(result, request.fit.keep))
    if told := parting(result.epochs, result.best):
        on_note(told)
    correction = settle(result.network, series, prepared.split)
    if correction:
        on_note(_correction_note(correction))
    network = add_monitors(result.network, given.architecture)
    calibrate(network, series, prepared.split)
    record = run.Run(
        source=request.source,
        facts=facts,
        architecture=given.architecture,
        fit=request.fit,
        outcome=run.outcome(result, correction),
        request=request if checkpointer else None,  # a request does not describe a given split
    )
    return record, network, given.ridge


def _complete(
    request: Request, prepared: Prepared, on_note: Callable[[str], None], chosen: Architecture | None
) -> Given:
    """The architecture with all that depends on the data: the linear link, and whether there is a level, unless `chosen` says so."""
    architecture = prepared.architecture
    if chosen:
        architecture = architecture.model_copy(update={"level": chosen.level, "level_steps": chosen.level_steps})
    given = prepare_links(prepared.series, prepared.split, prepared.scaler, architecture)
    if "linear" in request.links and request.task == "forecast" and given.ridge is None:
        on_note("links: a horizon has too few true values for a regression; the network corrects the last value")
    if given.architecture.level != "auto" or request.task == "classify":
        return given
    bare = replace(given, architecture=without_monitors(given.architecture))
    bare = choose_level(prepared.series, prepared.split, prepared.scaler, bare, request.fit)
    level = {name: getattr(bare.architecture, name) for name in ("level", "level_steps")}
    given = replace(given, architecture=given.architecture.model_copy(update=level))
    on_note(_level_note(given.architecture))
    return given


def _level_note(architecture: Architecture) -> str:
    """What was chosen, in words."""
    if architecture.level_steps is None:
        return "level: off, which scores better on the validation part; the network sees values as they are"
    return f"level: on, a running mean over some {architecture.level_steps} timesteps; the network sees values relative to it"


def _correction_note(correction: Correction) -> str:
    """What the network adds to the linear link on the validation part, in words."""
    kept = int((correction.kept > 0).sum())
    if not kept:
        return "the network adds nothing to the regression on the validation part: the regression forecasts alone"
    return (
        f"the network lowers the error of the regression on the validation part by {100 * correction.gain:.1f} %; its "
        f"correction is kept for {kept} of {correction.kept.size} forecasts"
    )


# How to continue a finished run.
_RESUME_ADVICE = {
    "epochs": "raise --epochs to go on",
    "patience": "raise --patience to go on",
    "minutes": "raise --minutes to go on",
    "diverged": "train anew with a smaller --learning-rate",
}


def _stop_note(result: FitResult, keep: str) -> str:
    """Why the training stopped, and which weights are kept, in words."""
    which = "best" if keep == "best" else "last weights kept,"
    return (
        f"stopped after epoch {len(result.epochs)}: {card.STOP_REASONS[result.stopped]}; "
        f"{which} validation score {result.best.score:.4f} in epoch {result.best.number} (1 = the naive forecast)"
    )
