"""`train` for notebooks and scripts: a data frame in, a version on disk and its scores out.

It does what `tidegate train` does, and takes its options as arguments of the same names.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tidegate.training import pipeline
from tidegate.training.data.features import ELAPSED
from tidegate.training.data.frame import is_frame, with_time_column
from tidegate.training.data.load import series_of
from tidegate.training.data.series import Series, Spans, future_values
from tidegate.training.data.source import read_source, source_like
from tidegate.training.data.write import write_parquet
from tidegate.training.errors import SettingsError
from tidegate.training.judging.advice import next_step
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.scores import Scores
from tidegate.training.judging.verdict import verdict
from tidegate.training.learning.epoch import Epoch, progress_line
from tidegate.training.publishing.version import read_card
from tidegate.training.settings import Fit, Request, Settings, Shape, Source, first_mistake, name_of

# As often as on the command line.
LINE_EVERY_S = 5.0
BASELINES = ("persistence", "seasonal_naive", "ridge")


@dataclass(frozen=True, repr=False)
class Training:
    """A trained model.

    Attributes:
        folder: of the version, with `model.onnx`, `card.json` and `report.html`.
        run: the folder of the training, for `tidegate train --resume` and `tidegate export`.
        scores: of the held-out part.
        verdict: the scores in words.
    """

    folder: Path
    run: Path
    scores: Scores
    verdict: str
    _record: Any = field(repr=False)
    _kind: Any = field(repr=False, default=None)

    def __repr__(self) -> str:
        return f"<Training {self.folder}: {self.verdict}>"

    def table(self) -> Any:
        """The scores of a forecast, a row for each target and horizon: errors, and the MAE of each baseline.

        A frame of the kind that was given; a dictionary of arrays without one.
        """
        table = self.scores.table
        columns: dict[str, list[Any]] = {
            "target": [score.target for score in table],
            "unit": [score.unit for score in table],
            "horizon": [score.horizon for score in table],
            "mae": [score.model.mae for score in table],
            "rmse": [score.model.rmse for score in table],
            "skill": [score.skill for score in table],
            "coverage": [score.model.coverage for score in table],
        }
        for name in BASELINES:
            errors = [score.baselines.get(name) for score in table]
            columns[name] = [error.mae if error else None for error in errors]
        return self._frame(columns)

    def forecast(self, data: Any = None) -> Any:
        """What the exported graph says at each timestep, replayed as a server would.

        Args:
            data: new rows with the same columns, as a frame or a file; by default the held-out rows. Each series in it is a
                new stream.

        Returns:
            A frame of the kind that was given in the training; a dictionary of arrays without one. Of a forecast it has a
            row for each timestep, horizon and target: `time` (UTC) of the timestep, `horizon` in timesteps, `target`,
            `forecast`, the quantiles as `p10`, `p50`, ..., the interval as `low` and `high`, and `actual`, NaN where it is
            not known. Of a classification it has a row for each timestep and class: `time`, `class` and `probability`.

        Raises:
            TrainingError: the data cannot be used.
        """
        graph = Graph.load(self.folder)
        series, spans = self._rows(graph, data)
        replay = Replay.of(graph, series, spans)
        columns = _forecasts(graph, series, spans, replay) if "forecast" in graph.outputs else _classes(graph, replay)
        return self._frame(columns)

    def _rows(self, graph: Graph, data: Any) -> tuple[Series, Spans]:
        """The series to replay, and the rows of it."""
        source, words = self._record.source, self._record.facts.categories
        if data is None:
            series = read_source(source, graph.features, words=words).select(graph.features)
            return series, self._record.facts.held_out.spans
        if is_frame(data):
            frame = with_time_column(data)
            known = set(frame.columns)
            series = series_of(
                frame,
                time=source.time,
                period_s=source.period,
                group=source.group if source.group in known else None,
                columns=graph.features,
                options=source,
                words=words,
                fill_gaps=0 if ELAPSED in graph.features else source.fill_gaps,
            )
        else:
            other = Source(data=str(data), time=source.time, columns=tuple(graph.features))
            series = read_source(source_like(other, read_card(self.folder)), graph.features, words=words)
        return series, series.spans

    def _frame(self, columns: dict[str, Any]) -> Any:
        return columns if self._kind is None else self._kind(columns)


def train(
    data: Any,
    *,
    target: str | Sequence[str] = (),
    say: Callable[[str], None] | None = print,
    threads: int = 1,
    **options: Any,
) -> Training:
    """Train on a data frame, export, score on the held-out part, and write a version.

    Args:
        data: a pandas or polars frame, a file, or the name of a data set. The times are a column of time stamps, or the index
            of a pandas frame. The rows of a frame are also written into the run folder, as Parquet, so that the commands
            `evaluate`, `report`, `export` and `train --resume` find them.
        target: the columns to forecast.
        say: called with lines of progress; None for silence.
        threads: of torch; more are seldom faster.
        options: those of `tidegate train`, with underscores: `horizons=(1, 6)`, `epochs=20`, `hidden=32`, ...

    Raises:
        SettingsError: an option does not exist, or has a value that cannot work.
        TrainingError: the data cannot be used, or the training failed.
    """
    options["target"] = (target,) if isinstance(target, str) else tuple(target)
    request = _request(data, options)
    if is_frame(data):
        request.out.mkdir(parents=True, exist_ok=True)
        write_parquet(with_time_column(data), Path(request.source.data))
    progress = _Progress(say)
    with _torch_threads(threads):
        published = pipeline.train(request, progress.show, progress.note)
    words = verdict(published.scores)
    progress.note(words)
    advice = next_step(published.scores)
    if advice:
        progress.note(advice)
    kind = type(data) if is_frame(data) else None
    return Training(published.folder, request.out, published.scores, words, published.run, kind)


def _request(data: Any, options: dict[str, Any]) -> Request:
    """The request of the options, with default names.

    Raises:
        SettingsError: an option does not exist, or has a value that cannot work.
    """
    kinds: tuple[type[Settings], ...] = (Source, Shape, Fit, Request)
    known = {name for each in kinds for name in each.model_fields} - {"source", "shape", "fit", "data", "resume"}
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            advice = f"expected {near[0]!r}" if near else "expected an option of `tidegate train`"
            raise SettingsError(f"{name}: there is no such option; {advice}")
    model = options.get("name") or ("model" if is_frame(data) else name_of(str(data)))
    out = Path(options.get("out") or Path("runs") / f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    place = str(out / f"{model}.parquet") if is_frame(data) else str(data)
    own = {name: value for name, value in options.items() if value is not None}

    def part(settings: Any, **more: Any) -> Any:
        return settings.model_validate({name: own[name] for name in settings.model_fields if name in own} | more)

    try:
        inner = {"source": part(Source, data=place), "shape": part(Shape), "fit": part(Fit)}
        request: Request = part(Request, **inner, name=model, out=out)
    except ValidationError as error:
        raise SettingsError(first_mistake(error)) from error
    return request


def _forecasts(graph: Graph, series: Series, spans: Spans, replay: Replay) -> dict[str, Any]:
    """A row for each timestep, horizon and target, in this order."""
    targets, horizons = graph.targets, graph.horizons
    forecast = replay.outputs["forecast"]  # (rows, horizons, targets)
    shape = forecast.shape
    columns: dict[str, Any] = {"time": np.repeat(replay.times, shape[1] * shape[2])}
    if series.groups:
        columns["group"] = np.repeat(_groups(series, spans), shape[1] * shape[2])
    columns["horizon"] = np.broadcast_to(np.array(horizons)[:, None], shape).ravel()
    columns["target"] = np.broadcast_to(np.array(targets, object), shape).ravel()
    columns["forecast"] = forecast.ravel()
    for index, level in enumerate(graph.quantiles):
        columns[f"p{100 * level:g}"] = replay.outputs["quantiles"][..., index].ravel()
    if "interval" in replay.outputs:
        columns["low"], columns["high"] = (replay.outputs["interval"][..., end].ravel() for end in (0, 1))
    truth = future_values(series, [series.column(name) for name in targets], horizons, spans)
    return columns | {"actual": truth.ravel()}


def _classes(graph: Graph, replay: Replay) -> dict[str, Any]:
    """A row for each timestep and class, in this order."""
    probability = replay.outputs["probability"]  # (rows, classes)
    return {
        "time": np.repeat(replay.times, probability.shape[1]),
        "class": np.tile(np.array(graph.targets, object), len(probability)),
        "probability": probability.ravel(),
    }


def _groups(series: Series, spans: Spans) -> Any:
    """The name of the group of each row of the spans."""
    names = np.empty(len(series), object)
    for group in series.groups:
        names[group.first : group.end] = group.name
    return np.concatenate([names[first:end] for first, end in spans])


class _Progress:
    """Lines of progress, not too many."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self.note = say or (lambda _: None)
        self._said_s = -LINE_EVERY_S

    def show(self, epoch: Epoch, best: Epoch) -> None:
        """Say a line now and then."""
        if time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            self.note(progress_line(epoch, best))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch meanwhile; a notebook has other work for them afterwards."""
    if count < 1:
        raise SettingsError(f"threads: got {count}, expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
