"""`tidegate stream`: sends a CSV file to a server one timestep at a time, and scores its forecasts."""

import asyncio
import csv
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass
from datetime import tzinfo
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tidegate.cli.connection import ConnectionSettings
from tidegate.cli.forecast_scores import ForecastScorer, Score, percent
from tidegate.cli.local_times import UnknownTime, find_zone
from tidegate.cli.outputs import check_outputs, replacing, require_matplotlib
from tidegate.cli.sensor_table import InvalidTable, SensorTable, check_inputs, read_table
from tidegate.cli.stretches import Clock, check_order, cut
from tidegate.client import Client, Model, Overloaded, Prediction, Stream
from tidegate.core.spec import Floats, Output

SECONDS_PER_DAY = 86400
# The feature with the seconds since the last timestep.
ELAPSED = "elapsed_s"
# Fast enough to look live, slow enough to need no CPU.
REFRESHES_PER_SECOND = 8


class ReplayFailed(Exception):
    """The file and the model do not fit. The message says why."""


class AlreadySent(ReplayFailed):
    """The stream has all rows of its series already."""


@dataclass(frozen=True, slots=True)
class ReplayedSeries:
    """A series of the file and the answers of its stream. `scorer` is None when nothing can be scored."""

    name: str
    table: SensorTable
    stream_id: str
    model: Model
    predictions: list[Prediction]
    seconds: float
    scorer: ForecastScorer | None


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What the card of a model says of its own data; empty and 0 without a card.

    Attributes:
        time, group: columns.
        fill_gaps: the longest gap, in rows, that is sent as missing values.
        time_format: how the training was told that times are written.
        timezone: of local times.
        missing_values: what means a missing value.
        offset: what was subtracted from columns, as meter=123456000.
    """

    time: str = ""
    group: str = ""
    fill_gaps: int = 0
    time_format: str = ""
    timezone: str = ""
    missing_values: tuple[str, ...] = ()
    offset: tuple[str, ...] = ()

    @classmethod
    def of(cls, card_json: str) -> "TrainedOn":
        """What a card says. Cards of other programs may say nothing of it."""
        card = json.loads(card_json) if card_json else {}
        source, data = card.get("source", {}), card.get("data", {})
        group = data.get("group_column") or source.get("group") or ""
        return cls(
            source.get("time") or "",
            group,
            source.get("fill_gaps", 0),
            source.get("time_format") or "",
            source.get("timezone") or "",
            tuple(source.get("missing_values", ())),
            tuple(source.get("offset", ())),
        )


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that get a stream of their own: a series of the file, or a stretch of it that follows a long gap.

    `number` counts the stretches of the series from 1.
    """

    name: str
    number: int
    table: SensorTable

    def stream_id(self, stem: str) -> str:
        """The id of its stream; empty, so that the server issues one, if there is no stem."""
        if not stem:
            return ""
        return stem + (f"-{self.name}" if self.name else "") + (f"~{self.number}" if self.number > 1 else "")


@dataclass
class Replay:
    """One run of `tidegate stream`.

    Row n of a series is timestep n of its stream, so a known stream continues where it was. The file has one series, or
    several that the column `group` tells apart. They are sent one after another, `limit` rows of each. A short gap in time
    is sent as missing values; the rows after a long one go to a fresh stream. That is what `tidegate evaluate` does.
    """

    file: Path
    connection: ConnectionSettings
    _: KW_ONLY
    model: str
    version: str
    stream_id: str
    group: str
    rate: float
    limit: int
    timezone: str = ""

    def __post_init__(self) -> None:
        self.console = Console()

    async def run(self, *, out: Path | None, plot: Path | None, scores: Path | None) -> None:
        """Sends the rows, then writes the files.

        Raises:
            CommandError: a result could not be written.
            InvalidTable, ReplayFailed: the model cannot read the file.
            ClientError: a stream could not be opened, or was lost.
        """
        if plot is not None:
            require_matplotlib("--plot")
        check_outputs(out, plot, scores)
        async with self.connection.client() as client:
            served, card = await client.describe(self.model, self.version)
            check_inputs(f"{served.name}/{served.version}", served.inputs_by_name)
            source = TrainedOn.of(card)
            table = read_table(
                self.file,
                [feature.name for feature in served.features],
                self.group,
                time=source.time,
                groups_of_model=source.group,
                time_format=source.time_format,
                period_s=served.period_s,
                categories={feature.name: feature.categories for feature in served.features if feature.categories},
                missing_values=source.missing_values,
                zone=self._zone(source),
            )
            if source.offset:
                self.console.print(
                    f"the training subtracted {', '.join(source.offset)}; this command sends values as they are in the file",
                    highlight=False,
                )
            for note in table.notes:
                self.console.print(note, highlight=False)
            series = self._series(table, served, source)
            sent = await self._send_all(client, series, served)
        timesteps, seconds = sum(len(one.predictions) for one in sent), sum(one.seconds for one in sent)
        self.console.print(
            f"{timesteps} timestep{'s' * (timesteps != 1)} in {seconds:.1f} s: {1e6 * seconds / timesteps:,.0f} µs per round trip",
            highlight=False,
        )
        scorers = [one.scorer for one in sent if one.scorer is not None]
        final = scorers[-1].scores(scorers[:-1]) if scorers else []
        if scorers:
            self.console.print(_score_table(scorers[-1], final))
        if table.when is None:
            why = f"Column {table.label} has no times that could be read ({table.labels[0]})"
            self.console.print(
                f"{why if table.labelled else 'The rows have no times'}: gaps between them were not seen.",
                highlight=False,
            )
        if out is not None:
            _write_predictions(out, sent, self.group)
        if scores is not None:
            _write_scores(scores, final, timesteps, seconds)
        if plot is not None:
            _plot_longest(sent, self.file, plot)

    def _zone(self, source: "TrainedOn") -> tzinfo | None:
        """The zone of local times: that of the command line, or of the training. Raises InvalidTable."""
        name = self.timezone or source.timezone
        try:
            return find_zone(name) if name else None
        except UnknownTime as error:
            raise InvalidTable(str(error)) from error

    def _series(self, table: SensorTable, served: Model, source: "TrainedOn") -> list["Part"]:
        """The parts of the file that get a stream of their own: each stretch of each series.

        Raises:
            InvalidTable: the times go back, or the rows are not as far apart as those of the training.
        """
        series = [(name, rows.first(self.limit or len(rows))) for name, rows in table.series()]
        times = [rows.when.moments for _, rows in series if rows.when]
        if len(times) < len(series):
            return [Part(name, 1, rows) for name, rows in series]
        for (_, rows), moments in zip(series, times, strict=True):
            check_order(self.file, rows, moments, self.group)
        clock = Clock.of(times)
        clock.check(self.file, served.period_s)
        # A model that gets the time since the last timestep sees every gap by itself.
        fill = 0 if any(feature.name == ELAPSED for feature in served.features) else source.fill_gaps
        return [
            Part(name, number, stretch)
            for name, rows in series
            for number, stretch in enumerate(cut(rows, clock, fill), start=1)
        ]

    async def _send_all(self, client: Client, parts: list["Part"], served: Model) -> list[ReplayedSeries]:
        """Sends each part that its stream does not have yet: at least one."""
        sent: list[ReplayedSeries] = []
        already_sent: list[AlreadySent] = []
        for part in parts:
            earlier = [one.scorer for one in sent if one.scorer is not None]
            try:
                sent.append(await self._send_part(client, part, _make_scorer(served, part.table), earlier))
            except AlreadySent as error:
                already_sent.append(error)
        if not sent:
            raise already_sent[0]
        return sent

    async def _send_part(
        self, client: Client, part: "Part", scorer: ForecastScorer | None, earlier: list[ForecastScorer]
    ) -> ReplayedSeries:
        """Sends one part to its own stream."""
        table, name = part.table, part.name
        async with client.open(part.stream_id(self.stream_id), model=self.model, version=self.version) as stream:
            first, rows = stream.next_step - 1, len(table)
            if first >= rows:
                raise AlreadySent(
                    f"stream '{stream.stream_id}' is at step {first} already and {self.file} has {rows} rows"
                    + (f" of {self.group} {name}" if name else "")
                    + "; give another --stream-id to begin again"
                )
            self.console.print(
                f"stream {stream.stream_id} ({stream.kind}) under {stream.model.name}/{stream.model.version}, "
                + (f"{self.group} {name}, " if name else "")
                + (f"after a gap, from {table.labels[0]}, " if part.number > 1 else "")
                + f"rows {first + 1} to {rows}",
                highlight=False,
            )
            started = time.perf_counter()
            predictions = await self._send(stream, table.values[first:], first, scorer, earlier)
            seconds = time.perf_counter() - started
        return ReplayedSeries(name, table, stream.stream_id, stream.model, predictions, seconds, scorer)

    async def _send(
        self, stream: Stream, values: Floats, first: int, scorer: ForecastScorer | None, earlier: list[ForecastScorer]
    ) -> list[Prediction]:
        """Sends rows, at a limited rate if requested, and refreshes the table."""
        predictions = []
        forecast, quantiles = _forecast_output(stream.model), _quantiles_output(stream.model)
        started = time.perf_counter()
        with self._live(scorer, earlier) as refresh:
            for row, x in enumerate(values):
                if self.rate:
                    await asyncio.sleep(started + row / self.rate - time.perf_counter())
                prediction = await _step(stream, x)
                predictions.append(prediction)
                if scorer is not None and forecast is not None and prediction:
                    bounds = None if quantiles is None else prediction[quantiles.name]
                    scorer.add(first + row, prediction[forecast.name], bounds)
                refresh()
        return predictions

    @contextmanager
    def _live(self, scorer: ForecastScorer | None, earlier: list[ForecastScorer]) -> Iterator[Callable[[], None]]:
        """Shows a table of scores on a terminal. Gives a function that redraws it, at a limited rate."""
        if scorer is None or not self.console.is_terminal:
            yield lambda: None
            return
        due = 0.0

        def refresh() -> None:
            nonlocal due
            if time.perf_counter() >= due:
                due = time.perf_counter() + 1 / REFRESHES_PER_SECOND
                live.update(_score_table(scorer, scorer.scores(earlier)), refresh=True)

        first = _score_table(scorer, scorer.scores(earlier))
        with Live(first, console=self.console, auto_refresh=False, transient=True) as live:
            yield refresh


async def _step(stream: Stream, x: Floats) -> Prediction:
    """Sends one timestep, again while the server is overloaded."""
    while True:
        try:
            return await stream.step(x)
        except Overloaded as error:
            await asyncio.sleep(error.retry_after_s)


def _forecast_output(model: Model) -> Output | None:
    """Returns the output that forecasts (horizons, targets); None when there is none."""
    for output in model.outputs:
        if output.horizons and output.targets and not output.quantiles:
            return output
    return None


def _quantiles_output(model: Model) -> Output | None:
    """Returns the output (horizons, targets, quantiles) that bounds the forecast: an interval before quantiles."""
    forecast = _forecast_output(model)
    bounds = [
        output
        for output in model.outputs
        if len(output.quantiles) > 1
        and forecast is not None
        and (output.horizons, output.targets) == (forecast.horizons, forecast.targets)
    ]
    return min(bounds, key=lambda output: len(output.quantiles), default=None)


def _make_scorer(model: Model, table: SensorTable) -> ForecastScorer | None:
    """Makes a scorer for the forecast of a model; None when its targets are not columns of the table."""
    forecast = _forecast_output(model)
    if forecast is None or any(target not in table.features for target in forecast.targets):
        return None
    truth = np.stack([table.column(target) for target in forecast.targets], axis=1)
    season = round(SECONDS_PER_DAY / model.period_s) if model.period_s else None
    quantiles = _quantiles_output(model)
    coverage = None if quantiles is None else quantiles.quantiles[-1] - quantiles.quantiles[0]
    return ForecastScorer(
        truth, forecast.targets, forecast.units, forecast.horizons, season, times=table.times(), coverage=coverage
    )


def _plot_longest(sent: list[ReplayedSeries], file: Path, path: Path) -> None:
    """Plots the longest series."""
    most = max(sent, key=lambda one: len(one.predictions))
    if most.scorer is None:
        raise ReplayFailed(f"--plot: model {most.model.name} forecasts no column of {file}")
    from tidegate.cli.plot import plot_forecasts  # noqa: PLC0415 - needs matplotlib, an optional dependency

    with replacing(path) as new:
        plot_forecasts(most.scorer, f"{most.model.name}/{most.model.version}, stream {most.stream_id}", new)


def _score_table(scorer: ForecastScorer, scores: list[Score]) -> Table:
    """Makes the table of forecasts and actual values."""
    when = "" if scorer.last_time is None else f" up to {scorer.last_time.isoformat(' ')}"
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", title=f"mean absolute errors{when}", title_justify="left"
    )
    headings = ["target", "horizon", "forecast", "actual", "error", "persistence"]
    seasons = any(score.seasonal_mae is not None for score in scores)
    if seasons:
        headings.append("seasonal")
    if scorer.coverage is not None:
        headings.insert(3, f"{percent(scorer.coverage)} interval")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=heading == "target")
    for score in scores:
        title = f"{score.target}, {score.unit}" if score.unit else score.target
        style = "" if np.isnan(score.mae) else "green" if score.beats_baselines else "yellow"
        mae = f"[{style}]{score.mae:.4g}[/]" if style else f"{score.mae:.4g}"
        seasonal = [] if score.seasonal_mae is None else [f"{score.seasonal_mae:.4g}"]
        interval = [] if scorer.coverage is None else [f"{score.low:.4g}–{score.high:.4g}"]
        table.add_row(
            escape(title),
            str(score.horizon),
            f"{score.predicted:.4g}",
            *interval,
            f"{score.came_true:.4g}",
            mae,
            f"{score.persistence_mae:.4g}",
            *seasonal,
        )
    return table


def _write_predictions(path: Path, sent: list[ReplayedSeries], group: str) -> None:
    """Writes one row per timestep: its series, number and label, and every value of every output."""
    outputs = sent[0].model.outputs
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [name for output in outputs for name in _columns(output)]
        writer.writerow([*([group] if group else []), "step", sent[0].table.label, *names])
        for one in sent:
            for prediction in one.predictions:
                values = (
                    [value for output in outputs for value in prediction[output.name].ravel().tolist()]
                    if prediction
                    else []
                )
                label = one.table.labels[prediction.step - 1]
                writer.writerow([*([one.name] if group else []), prediction.step, label, *values])


def _write_scores(path: Path, final: list[Score], timesteps: int, seconds: float) -> None:
    """Writes the scores as JSON. NaN, where nothing was scored, becomes null."""
    scores = [asdict(score) | {"beats_baselines": score.beats_baselines} for score in final]
    facts = [{name: None if value != value else value for name, value in score.items()} for score in scores]  # noqa: PLR0124
    with replacing(path) as new:
        new.write_text(json.dumps({"timesteps": timesteps, "seconds": seconds, "scores": facts}, indent=2), "utf-8")


def _columns(output: Output) -> list[str]:
    """Returns a name for each value of an output, in row-major order."""
    axes: list[list[str]] = []
    if output.horizons:
        axes.append([f"+{horizon}" for horizon in output.horizons])
    if output.targets:
        axes.append(list(output.targets))
    if output.quantiles:
        axes.append([f"q{quantile:g}" for quantile in output.quantiles])
    if tuple(len(axis) for axis in axes) != output.shape:
        return [f"{output.name}[{index}]" for index in range(int(np.prod(output.shape)))]
    names = [output.name]
    for axis in axes:
        names = [f"{name}.{part}" for name in names for part in axis]
    return names
