"""Sends a CSV file to a server one timestep at a time, and shows its forecasts against what comes true."""

import asyncio
import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from serving.cli.scoreboard import Scoreboard
from serving.cli.sheet import Sheet, read_sheet
from serving.client import Client, Model, Overloaded, Prediction, Stream
from serving.core.spec import Floats, Output

SECONDS_A_DAY = 86400
# Often enough to look alive, seldom enough to cost nothing.
FRAMES_A_SECOND = 8


class ReplayFailed(Exception):
    """The file and the model do not go together; the message says why."""


class Replay:
    """One run of `tidegate stream`.

    Row n of the file is timestep n of the stream: a stream that is known already goes on where it was.
    """

    def __init__(
        self, file: Path, address: str, *, model: str, version: str, stream_id: str, rate: float, limit: int
    ) -> None:
        self.file = file
        self.address = address
        self.model = model
        self.version = version
        self.stream_id = stream_id
        self.rate = rate
        self.limit = limit
        self.console = Console()

    async def run(self, *, out: Path | None, plot: Path | None, scores: Path | None) -> None:
        """Sends the rows, then writes what was asked for.

        Raises:
            BadSheet, ReplayFailed: the file is not one that the model can read.
            ClientError: the stream could not be opened, or was lost.

        """
        if plot is not None:
            _check_matplotlib()
        for path in (out, plot, scores):
            if path is not None:
                _check_writable(path)
        async with Client(self.address) as client:
            known, _ = await client.describe(self.model, self.version)
            sheet = read_sheet(self.file, [feature.name for feature in known.features])
            rows = min(len(sheet), self.limit or len(sheet))
            board = _board_of(known, sheet, rows)
            async with client.open(self.stream_id, model=self.model, version=self.version) as stream:
                first = stream.next_step - 1
                if first >= rows:
                    raise ReplayFailed(
                        f"stream '{stream.stream_id}' is at step {first} already and {self.file} has {rows} rows; "
                        "give another --stream-id to begin again"
                    )
                self.console.print(
                    f"stream {stream.stream_id} ({stream.kind}) under {stream.model.name}/{stream.model.version}, "
                    f"rows {first + 1} to {rows}",
                    highlight=False,
                )
                predictions, seconds = await self._send(stream, sheet.values[first:rows], first, board)
        self.console.print(
            f"{len(predictions)} timesteps in {seconds:.1f} s: {1e6 * seconds / len(predictions):,.0f} µs each, there and back",
            highlight=False,
        )
        if board is not None:
            self.console.print(_table(board))
        if out is not None:
            _write_predictions(out, stream.model.outputs, sheet, predictions)
        if scores is not None:
            _write_scores(scores, board, len(predictions), seconds)
        if plot is not None:
            if board is None:
                raise ReplayFailed(f"--plot: model {known.name} has no forecast of a column of {self.file} to draw")
            from serving.cli.plot import plot as draw  # noqa: PLC0415 - needs matplotlib, which is optional

            draw(board, f"{known.name}/{known.version}, stream {stream.stream_id}", plot)

    async def _send(
        self, stream: Stream, values: Floats, first: int, board: Scoreboard | None
    ) -> tuple[list[Prediction], float]:
        """Sends rows, paced if asked, and keeps the table fresh; gives the predictions and the seconds it took."""
        predictions = []
        forecast = _forecast_of(stream.model)
        begun = time.perf_counter()
        with self._live(board) as refresh:
            for row, x in enumerate(values):
                if self.rate:
                    await asyncio.sleep(begun + row / self.rate - time.perf_counter())
                prediction = await _step(stream, x)
                predictions.append(prediction)
                if board is not None and forecast is not None and prediction:
                    board.add(first + row, prediction[forecast.name])
                refresh()
        return predictions, time.perf_counter() - begun

    @contextmanager
    def _live(self, board: Scoreboard | None) -> Iterator["Refresh"]:
        if board is None or not self.console.is_terminal:
            with nullcontext():
                yield Refresh(None, None)
            return
        with Live(_table(board), console=self.console, auto_refresh=False, transient=True) as live:
            yield Refresh(live, board)


class Refresh:
    """Redraws a live table, at most so many times a second."""

    def __init__(self, live: Live | None, board: Scoreboard | None) -> None:
        self._live = live
        self._board = board
        self._next = 0.0

    def __call__(self) -> None:
        """Redraws if it is time."""
        if self._live is None or self._board is None or time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + 1 / FRAMES_A_SECOND
        self._live.update(_table(self._board), refresh=True)


async def _step(stream: Stream, x: Floats) -> Prediction:
    """Sends one timestep, as often as a full server asks for it."""
    while True:
        try:
            return await stream.step(x)
        except Overloaded as error:
            await asyncio.sleep(error.retry_after_s)


def _forecast_of(model: Model) -> Output | None:
    """The output that forecasts (horizons, targets), if there is one."""
    for output in model.outputs:
        if output.horizons and output.targets and not output.quantiles:
            return output
    return None


def _board_of(model: Model, sheet: Sheet, rows: int) -> Scoreboard | None:
    """A scoreboard for the forecast of a model, if its targets are columns of the sheet."""
    forecast = _forecast_of(model)
    if forecast is None or any(target not in sheet.features for target in forecast.targets):
        return None
    truth = np.stack([sheet.column(target)[:rows] for target in forecast.targets], axis=1)
    season = round(SECONDS_A_DAY / model.period_s) if model.period_s else None
    return Scoreboard(truth, forecast.targets, forecast.units, forecast.horizons, season)


def _table(board: Scoreboard) -> Table:
    """Prediction against what came true."""
    table = Table(box=None, header_style="bold", title="mean absolute errors", title_justify="left")
    headings = ["target", "timesteps ahead", "forecast", "came true", "error", "persistence"]
    for heading in [*headings, "seasonal"] if board.season is not None else headings:
        table.add_column(heading, justify="left" if heading == "target" else "right", no_wrap=heading == "target")
    for score in board.scores():
        title = f"{score.target}, {score.unit}" if score.unit else score.target
        style = "" if np.isnan(score.mae) else "green" if score.beats_baselines else "yellow"
        mae = f"[{style}]{score.mae:.4g}[/]" if style else f"{score.mae:.4g}"
        seasonal = [] if score.seasonal_mae is None else [f"{score.seasonal_mae:.4g}"]
        table.add_row(
            escape(title),
            str(score.horizon),
            f"{score.predicted:.4g}",
            f"{score.came_true:.4g}",
            mae,
            f"{score.persistence_mae:.4g}",
            *seasonal,
        )
    return table


def _write_predictions(path: Path, outputs: tuple[Output, ...], sheet: Sheet, predictions: list[Prediction]) -> None:
    """Writes one row a timestep: its number, its label, and every value of every output."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", sheet.label, *(name for output in outputs for name in _columns(output))])
        for prediction in predictions:
            values = (
                [value for output in outputs for value in prediction[output.name].ravel().tolist()]
                if prediction
                else []
            )
            writer.writerow([prediction.step, sheet.labels[prediction.step - 1], *values])


def _write_scores(path: Path, board: Scoreboard | None, timesteps: int, seconds: float) -> None:
    """Writes the scoreboard as JSON; NaN, where nothing was scored, is null."""
    scores = [asdict(score) | {"beats_baselines": score.beats_baselines} for score in board.scores()] if board else []
    facts = [{name: None if value != value else value for name, value in score.items()} for score in scores]  # noqa: PLR0124
    path.write_text(json.dumps({"timesteps": timesteps, "seconds": seconds, "scores": facts}, indent=2), "utf-8")


def _columns(output: Output) -> list[str]:
    """A name for each value of an output, row-major."""
    axes: list[list[str]] = []
    if output.horizons:
        axes.append([f"+{horizon}" for horizon in output.horizons])
    if output.targets:
        axes.append(list(output.targets))
    if output.quantiles:
        axes.append([f"q{quantile:g}" for quantile in output.quantiles])
    if tuple(len(axis) for axis in axes) != output.shape:
        return [f"{output.name}[{place}]" for place in range(int(np.prod(output.shape)))]
    names = [output.name]
    for axis in axes:
        names = [f"{name}.{part}" for name in names for part in axis]
    return names


def _check_writable(path: Path) -> None:
    """Finds out before anything is sent whether the result can be written."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise ReplayFailed(f"{path}: cannot be written: {error.strerror}") from None


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415, ICN001 - only to see whether it is there, before anything is sent
    except ModuleNotFoundError:
        raise ReplayFailed("--plot needs matplotlib: install tidegate with its extra, tidegate[plot]") from None
