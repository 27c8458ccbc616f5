"""Works with a version on disk: scores it on other data, and rebuilds its report.

This module prints nothing and knows no command line.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tidegate.training.data.learned import learned_rows
from tidegate.training.data.overview import overview
from tidegate.training.data.series import Series, check_period
from tidegate.training.data.source import read_source, source_like, source_of
from tidegate.training.data.split import Split
from tidegate.training.data.write import write_csv
from tidegate.training.errors import ChecksumMismatch, ModelUnreadable
from tidegate.training.judging.detection import FaultyReplay
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.scores import Scores
from tidegate.training.publishing import report
from tidegate.training.publishing.version import read_card
from tidegate.training.settings import Source


def evaluate_version(
    model: Path,
    *,
    data: str | None,
    time: str | None,
    season: int | None,
    all_rows: bool = False,
    reading: dict[str, Any] | None = None,
    csv: Path | None = None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> Scores:
    """Score a version on the held-out part of its card, or on other data.

    Of other data the rows are left out that lie in the time that the model has learned from.

    Args:
        model: the folder of the version.
        data: other data than that of the card.
        time: the time column of other data.
        season: see `evaluate`.
        all_rows: score all rows of other data: they are of another source.
        reading: how to read other data: fields of `Format`; what is not given is guessed, or as in the training.
        csv: a file to write the rows to, with the features of the model, before they are scored.
        on_note: called with a sentence for the user.

    Raises:
        ModelUnreadable: there is no model, or neither a card nor other data.
        TrainingError: the data cannot be used.
    """
    graph = Graph.load(model)
    if not {"forecast", "probability"} & set(graph.outputs):
        raise ModelUnreadable(
            f"model: {model} gives {', '.join(graph.outputs)}, expected an output 'forecast' or 'probability' to score"
        )
    model_card = read_card(model)
    if model_card is not None and "source" not in model_card:
        model_card = None  # of a network that was trained elsewhere
    if data is not None:
        given = {name: value for name, value in (reading or {}).items() if value is not None}
        other = Source.model_validate({"data": data, "time": time, "columns": tuple(graph.features), **given})
        source = source_like(other, model_card)
    elif model_card is not None:
        source = source_of(model_card)
    else:
        raise ModelUnreadable(f"data: {model} has no card.json that says what it was trained on; pass --data")
    series = read_source(source, graph.features, words=_words(model_card))
    for line in (*series.notes, *overview(series)):
        on_note(line)
    if csv is not None:
        write_csv(series.select(graph.features), csv, series.spans)
    check_period(series, graph.description["period_s"])
    if model_card is None:
        return evaluate(graph, series, season=season)
    if model_card["data"]["sha256"] == series.sha256:
        # Only the held-out rows are scored; the baselines are fitted on the training rows of the model.
        return evaluate(graph, series, season=season, split=_split_of(model_card["data"]))
    return _score_others(graph, series, model_card, season, all_rows=all_rows)


def _score_others(
    graph: Graph, series: Series, model_card: dict[str, Any], season: int | None, *, all_rows: bool
) -> Scores:
    """The scores of other data, without the rows that the model has learned from."""
    scales = model_card["scores"].get("mase_scale")
    if all_rows:
        return evaluate(graph, series, season=season, scales=scales)
    learned = learned_rows(series, model_card["data"])
    if learned.complete:
        scores = evaluate(graph, series, season=season, split=learned.split)
    else:
        scores = evaluate(graph, series, learned.split.test, season=season, scales=scales)
    return replace(scores, left_out=learned.rows)


def rebuild_report(model: Path, *, data: str | None) -> str:
    """The report of a version, rebuilt from its card and its data.

    Args:
        model: the folder of the version.
        data: the present place of the data; by default its place in the training.

    Raises:
        ModelUnreadable: there is no model, or no card with the content of a report.
        ChecksumMismatch: the data has changed since the training.
        TrainingError: the data cannot be used.
    """
    graph = Graph.load(model)
    model_card = read_card(model)
    if model_card is None or "history" not in model_card:
        raise ModelUnreadable(f"model: {model} has no card.json with what a report needs; export its run again")
    source = source_of(model_card)
    source = source.model_copy(update={"data": data or source.data})
    series = read_source(source, graph.features, words=_words(model_card)).select(graph.features)
    if series.sha256 != model_card["data"]["sha256"]:
        raise ChecksumMismatch(
            f"data: {series.name} has SHA-256 {series.sha256}, expected {model_card['data']['sha256']}, on which the model was "
            f"trained; `tidegate evaluate` scores a model on other data"
        )
    split = _split_of(model_card["data"])
    replay = Replay.of(graph, series, split.test, drawn=True)
    faulty = FaultyReplay.of(graph, series, split.test, split, replay, first_only=True)
    return report.build(report.ReportContent(model_card, replay, faulty))


def _words(model_card: dict[str, Any] | None) -> dict[str, list[str]]:
    """The words of the categories of a model, by feature, in its order."""
    features = model_card["features"] if model_card else []
    return {feature["name"]: feature["categories"] for feature in features if feature.get("categories")}


def _split_of(data: dict[str, Any]) -> Split:
    """The split in the data of a card."""
    parts = (data[part]["spans"] for part in ("training", "validation", "held_out"))
    train, validation, held_out = (tuple((first, end) for first, end in spans) for spans in parts)
    return Split(train, validation, held_out)
