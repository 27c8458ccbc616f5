"""The commands of the training package. Only this package prints and knows exit codes.

A usage error is one line on stderr and exit code 2, never a traceback. torch, onnx and pyarrow take seconds to load, so
each command imports what it uses, and `--help` does not wait.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from tidegate.training.cli.options import build, option, options_of
from tidegate.training.cli.progress import FitProgress
from tidegate.training.data import datasets as catalogue
from tidegate.training.errors import SettingsError, TableErrors, TrainingError
from tidegate.training.outputs import replacing
from tidegate.training.settings import (
    Fit,
    Format,
    Request,
    Rolling,
    Search,
    Shape,
    Source,
    first_mistake,
    name_of,
)

if TYPE_CHECKING:
    from tidegate.training.data.prepare import Prepared

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C
FILE_WIDTH = 200  # columns of a table with many settings, if there is no terminal

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Train recurrent networks on sensor series.")

Models = Annotated[Path, option("models", "The folder of models.")]
Name = Annotated[str | None, option("name", "The name of the model; by default that of the data.")]
Version = Annotated[int | None, option("version", "The version to write; by default the next free one.")]
Season = Annotated[int | None, option("season", "Timesteps of the seasonal-naive baseline; by default a day.")]
Json = Annotated[Path | None, option("json", "Also write the result to this file, as JSON.")]
Threads = Annotated[int, option("threads", "Threads of torch; more are seldom faster.")]


@app.command()
@options_of(Source, Request, Shape, Fit)
def train(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Train on a series, export the graph, score it on the held-out part, and write a version of the model."""
    # Read before torch is loaded, so that a wrong option fails at once.
    request = _request(values)
    with FitProgress(Console(stderr=True, soft_wrap=True)) as progress:
        _check_threads(threads)
        prepared = None
        if not (request.resume or request.warm_start):
            from tidegate.training.publishing.version import free_version

            free_version(request.models, request.name, request.version)
            prepared = _prepare(request, progress.note)
        _set_threads(threads)
        from tidegate.training.learning.run import how_to_go_on
        from tidegate.training.pipeline import train as run_training

        folder = request.resume or request.out
        with _saying(lambda: how_to_go_on(folder)):
            published = run_training(request, progress.show, progress.note, prepared)
    _report(published.scores, json_file, model=published.folder, run=folder)
    if published.run.outcome.stopped == "interrupted":
        _print(how_to_go_on(folder))


@app.command()
@options_of(Rolling, Source, Request, Shape, Fit)
def backtest(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Train several times on a growing past, and score each model on the block that follows; writes no model."""
    for name in ("models", "version", "held_out"):
        if values.get(name) is not None:
            raise SettingsError(f"{name.replace('_', '-')}: a backtest writes no model and no rows; leave it out")
    _refuse_warm_start(values)
    request, rolling = _request(values), build(Rolling, values)
    _check_threads(threads)
    from tidegate.training.data.source import read_request

    series = read_request(request)  # before torch is loaded, which takes seconds
    _set_threads(threads)
    from tidegate.training.backtest import backtest as roll
    from tidegate.training.cli import scoreboard

    again = f"a backtest cannot be resumed: begin anew, without {request.out} or with another --out"
    with FitProgress(Console(stderr=True, soft_wrap=True)) as progress, _saying(lambda: again):
        result = roll(request, rolling, progress.show, progress.note, series)
    _show(scoreboard.backtest_table(result))
    _print(scoreboard.backtest_verdict(result))
    _print(f"runs: {request.out}")
    if json_file:
        _write_json(json_file, {"runs": str(request.out)} | result.as_json())


@app.command()
@options_of(Source, Request, Shape, Fit, Search)
def tune(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Search for good settings, train in full with the best ones, and write a version; the same command again continues."""
    search = build(Search, values)
    # A fixed folder, so that the same command continues the search. --minutes belong to the search.
    model = values.get("name") or name_of(values.get("data") or Source().data)
    request = _request(values | {"minutes": None, "out": values.get("out") or Path("runs") / f"{model}-tune"})
    if request.resume:
        raise SettingsError("resume: the same command with the same --out continues a search; leave --resume out")
    _refuse_warm_start(values)
    _check_threads(threads)
    if find_spec("optuna") is None:
        raise SettingsError("tune: needs optuna, which is not installed: pip install 'tidegate[tune]'")
    from tidegate.training.search.space import check_space

    check_space(request, search)
    console = Console(stderr=True, soft_wrap=True)
    prepared = _prepare(request, _note)
    _set_threads(threads)
    from tidegate.training.search.trials import draw, tables, trial_line
    from tidegate.training.search.tune import Callbacks
    from tidegate.training.search.tune import tune as find

    with FitProgress(console) as progress, _saying(lambda: "finished trials are kept: the same command continues"):
        outcome = find(
            request,
            search,
            Callbacks(lambda *trial: progress.note(trial_line(*trial)), progress.show, progress.note),
            prepared,
        )
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH).print(tables(outcome))
    picture = draw(outcome, request.out / "tune.png")
    if picture:
        _print(f"picture: {picture}")
    if outcome.left:
        _print(f"{outcome.left} of {search.trials} trials are left: the same command continues")
    if outcome.best:
        _report(outcome.best.scores, json_file, model=outcome.best.folder, search=request.out)


@app.command()
@options_of(Source)
def inspect(
    file: Annotated[str, typer.Argument(help="A file, a folder or a pattern of files, or a named data set.")],
    json_file: Json = None,
    **values: Any,
) -> None:
    """Tell what a table holds, without a training: columns, range, period, gaps, and what looks wrong.

    A column that a training would refuse is marked, with what to do; the exit code is then 2.

    Of a FILE.onnx it tells inputs, outputs and state, and writes a model.toml; that has options of its own, see FILE.onnx --help.
    """
    from tidegate.training.cli.inspection import table
    from tidegate.training.data.inspection import inspect as inspect_source

    if values.get("data") is not None:
        raise SettingsError(f"data: got {values['data']!r} beside the file {file!r}, expected one of them")
    found = inspect_source(build(Source, values | {"data": file}))
    _show(table(found))
    if json_file:
        _write_json(json_file, found.as_json())
    if found.unusable:
        _fail(f"columns that cannot be used as they are: {', '.join(found.unusable)}; the table says what to do")


@app.command()
@options_of(Format)
def evaluate(
    model: Annotated[Path, typer.Argument(help="A version's folder, or its model.onnx.")],
    data: Annotated[str | None, option("data", "Other data than that of the card.")] = None,
    time: Annotated[str | None, option("time", "The time column; that of the card, or the only one.")] = None,
    season: Season = None,
    json_file: Json = None,
    all_rows: Annotated[
        bool, option("all-rows", "Score rows at times that the model has learned from too: they are of another source.")
    ] = False,
    csv_file: Annotated[
        Path | None, option("csv", "Write the rows as the model takes them to this file, for `tidegate stream`.")
    ] = None,
    **values: Any,
) -> None:
    """Replay data through an exported graph, step by step, and print its scores beside the baselines."""
    from tidegate.training.published import evaluate_version

    scores = evaluate_version(
        model, data=data, time=time, season=season, reading=values, all_rows=all_rows, csv=csv_file, on_note=_note
    )
    _report(scores, json_file, model=model)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `tidegate train` wrote.")],
    data: Annotated[str | None, option("data", "The present place of the data, if it has moved.")] = None,
    season: Season = None,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = None,
    json_file: Json = None,
) -> None:
    """Export the network of a run again, with the same checks and scores as after its training."""
    _set_threads(1)
    from tidegate.training.pipeline import export_run

    published = export_run(run, models, data=data, name=name, version=version, season=season)
    _report(published.scores, json_file, model=published.folder, run=run)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="A version's folder, or its model.onnx.")],
    data: Annotated[str | None, option("data", "The present place of the data, if it has moved.")] = None,
    out: Annotated[Path | None, option("out", "The file to write; by default report.html beside the card.")] = None,
) -> None:
    """Write the report of a version again, from its card and its data: one HTML page that needs nothing else."""
    from tidegate.training.published import rebuild_report

    page = rebuild_report(model, data=data)
    path = out or (model if model.is_dir() else model.parent) / "report.html"
    with replacing(path) as file:
        file.write(page)
    _print(f"report: {path}")


@app.command()
def datasets() -> None:
    """List the named data sets, with source and licence."""
    for index, dataset in enumerate(catalogue.DATASETS.values()):
        if index:
            _print("")
        _print(f"{dataset.name}: {dataset.about}")
        _print(f"  {dataset.rows} rows, {len(dataset.units)} channels, one every {dataset.period_s:g} s")
        if dataset.group:
            _print(f"  groups: {dataset.groups}, by {dataset.group}")
        if dataset.split_by:
            _print(f"  kept together by a split: each {dataset.split_by}")
        if dataset.label:
            _print(f"  label: {dataset.label}")
        _print(f"  usual target: {dataset.target or 'none, it is there to be classified'}")
        _print(f"  left out by default: {', '.join(dataset.noise) or 'nothing'}")
        _print(f"  source: {dataset.source}")
        _print(f"  licence: {dataset.licence}")


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` has no program name; by default the arguments of the process.

    Raises:
        SystemExit: with 2 after a usage error, which is one line on stderr.
    """
    try:
        code = app(args=argv, prog_name="tidegate", standalone_mode=False)
    except TrainingError as error:
        _fail(str(error), several=isinstance(error, TableErrors))
    except ValidationError as error:
        _fail(first_mistake(error))
    except typer.TyperException as error:
        _fail(error.format_message())
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(EXIT_INTERRUPTED) from None
    if code:
        raise SystemExit(code)


def _fail(message: str, *, several: bool = False) -> NoReturn:
    for line in message.splitlines() if several else [message]:
        sys.stderr.write(f"error: {' '.join(line.split())}\n")
    raise SystemExit(EXIT_USAGE) from None


def _request(values: dict[str, Any]) -> Request:
    """The request of the options, with default names."""
    source = build(Source, values)
    model = values.get("name") or name_of(source.data)
    out = values.get("out") or Path("runs") / f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parts = {"source": source, "shape": build(Shape, values), "fit": build(Fit, values)}
    return build(Request, values, **parts, name=model, out=out)


def _prepare(request: Request, on_note: Callable[[str], None]) -> "Prepared":
    """Read and check the data before torch is loaded, which takes seconds."""
    from tidegate.training.data.prepare import prepare
    from tidegate.training.data.source import read_request

    return prepare(request, read_request(request), on_note)


@contextmanager
def _saying(how: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C or a full disk the last line says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        _note(f"interrupted; {how()}")
        raise
    except OSError as error:
        raise TrainingError(f"{error.filename or 'input or output'}: {error.strerror or error}; {how()}") from error


def _refuse_warm_start(values: dict[str, Any]) -> None:
    if values.get("warm_start") is not None:
        raise SettingsError("warm-start: only `tidegate train` goes on from a model; leave it out")


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise SettingsError(f"threads: got {threads}, expected at least 1")


def _set_threads(threads: int) -> None:
    _check_threads(threads)
    import torch

    torch.set_num_threads(threads)


def _report(scores: Any, json_file: Path | None, **places: Path) -> None:
    """Print the tables, the verdict and the places of the results; write them to the file if there is one."""
    from tidegate.training.cli import scoreboard
    from tidegate.training.judging.advice import next_step
    from tidegate.training.judging.verdict import verdict

    _show(scoreboard.table(scores))
    _print(verdict(scores))
    advice = next_step(scores)
    if advice:
        _print(advice)
    for what, path in places.items():
        _print(f"{what}: {path}")
    if json_file:
        result = {what: str(path) for what, path in places.items()} | {"scores": scores.as_json()}
        _write_json(json_file, result)


def _show(table: Any) -> None:
    """Print a table as wide as it needs: a narrow screen must not hide numbers."""
    from tidegate.training.cli.tables import WIDTH

    Console(soft_wrap=True, width=max(Console().width, WIDTH)).print(table)


def _write_json(path: Path, result: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
