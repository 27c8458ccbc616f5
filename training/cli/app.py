"""The commands of the training package. The only place that prints and knows exit codes.

A mistake of the person who types is one line on stderr and exit code 2, never a traceback. torch, onnx and pyarrow take
seconds to load, so they are imported by the commands that use them and `--help` does not wait.
"""

import json
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from training.cli.options import build, option, options_of
from training.data import datasets as named
from training.errors import SettingsError, TrainingError
from training.settings import Fit, Request, Rolling, Search, Shape, Source

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C
FILE_WIDTH = 200  # columns of a table with many settings, where no terminal says how wide it is

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Train recurrent networks on sensor series.")

Models = Annotated[Path, option("models", "The folder of models.")]
Name = Annotated[str | None, option("name", "The model's name; the data's name when not given.")]
Version = Annotated[int | None, option("version", "The version to write; the next free one when not given.")]
Season = Annotated[int | None, option("season", "Timesteps of the seasonal-naive baseline; a day when not given.")]
Json = Annotated[Path | None, option("json", "Also write the result to this file, as JSON.")]
Threads = Annotated[int, option("threads", "For torch; more are seldom faster.")]


@app.command()
@options_of(Source, Request, Shape, Fit)
def train(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Train on a series, export the graph, score it on the held-out part, and write a version of the model."""
    # Read before torch is loaded, so that a wrong option is told at once.
    request = _request(values)
    _set_threads(threads)
    from training.cli.progress import FitProgress
    from training.pipeline import train as learn

    with FitProgress(Console(stderr=True, soft_wrap=True)) as progress:
        published = learn(request, progress.show, progress.note)
    _report(published.scores, json_file, model=published.folder, run=request.out)


@app.command()
@options_of(Rolling, Source, Request, Shape, Fit)
def backtest(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Train several times on an ever longer past, and judge each model on the block that follows; writes no model."""
    for name in ("models", "version", "held_out"):
        if values.get(name) is not None:
            raise SettingsError(f"{name.replace('_', '-')}: a backtest writes no model and no rows; leave it out")
    request, rolling = _request(values), build(Rolling, values)
    _set_threads(threads)
    from training.backtest import backtest as roll
    from training.cli import scoreboard
    from training.cli.progress import FitProgress

    with FitProgress(Console(stderr=True, soft_wrap=True)) as progress:
        result = roll(request, rolling, progress.show, progress.note)
    _show(scoreboard.backtest_table(result))
    _say(scoreboard.backtest_verdict(result))
    _say(f"runs: {request.out}")
    if json_file:
        _write_json(json_file, {"runs": str(request.out)} | result.as_json())


@app.command()
@options_of(Source, Request, Shape, Fit, Search)
def tune(*, threads: Threads = 1, json_file: Json = None, **values: Any) -> None:
    """Search for good settings, learn the best ones in full, and write a version; the same command again goes on."""
    search = build(Search, values)
    # The same folder each time, so that a search goes on, and not one for each second. --minutes are the search's.
    model = values.get("name") or Path(values.get("data") or Source().data).stem
    request = _request(values | {"minutes": None, "out": values.get("out") or Path("runs") / f"{model}-tune"})
    if request.resume:
        raise SettingsError("resume: a search goes on by the same command with the same --out; leave --resume out")
    _set_threads(threads)
    _need("optuna", "tune")
    from training.cli.progress import FitProgress
    from training.search.trials import draw, line, tables
    from training.search.tune import Callbacks
    from training.search.tune import tune as find

    console = Console(stderr=True, soft_wrap=True)
    with FitProgress(console) as progress:
        outcome = find(
            request, search, Callbacks(lambda *told: progress.note(line(*told)), progress.show, progress.note)
        )
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH).print(tables(outcome))
    picture = draw(outcome, request.out / "tune.png")
    if picture:
        _say(f"picture: {picture}")
    if outcome.left:
        _say(f"{outcome.left} of {search.trials} trials are left: the same command goes on")
    if outcome.best:
        _report(outcome.best.scores, json_file, model=outcome.best.folder, search=request.out)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A version's folder, or its model.onnx.")],
    data: Annotated[str | None, option("data", "Other data than the card names; all of its rows are scored.")] = None,
    time: Annotated[str | None, option("time", "The time column; found by itself when there is only one.")] = None,
    season: Season = None,
    json_file: Json = None,
) -> None:
    """Replay data through an exported graph, step by step, and print its scores beside the baselines."""
    from training.pipeline import judge

    _report(judge(model, data=data, time=time, season=season), json_file, model=model)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `tidegate train` wrote.")],
    data: Annotated[str | None, option("data", "Where the run's data is now, if it was moved.")] = None,
    season: Season = None,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = None,
    json_file: Json = None,
) -> None:
    """Export the network of a run again, with the same checks and scores as after its training."""
    _set_threads(1)
    from training.pipeline import export_run

    published = export_run(run, models, data=data, name=name, version=version, season=season)
    _report(published.scores, json_file, model=published.folder, run=run)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="A version's folder, or its model.onnx.")],
    data: Annotated[str | None, option("data", "Where the version's data is now, if it was moved.")] = None,
    out: Annotated[Path | None, option("out", "The file to write; report.html beside the card when not given.")] = None,
) -> None:
    """Write the report of a version again, from its card and its data: one HTML page that needs nothing else."""
    from training.pipeline import report_again

    page = report_again(model, data=data)
    path = out or (model if model.is_dir() else model.parent) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    _say(f"report: {path}")


@app.command()
def datasets() -> None:
    """List the named data sets, with source and licence."""
    for index, dataset in enumerate(named.DATASETS.values()):
        if index:
            _say("")
        _say(f"{dataset.name}: {dataset.about}")
        _say(f"  {dataset.rows} rows, {len(dataset.units)} channels, one every {dataset.period_s:g} s")
        if dataset.group:
            _say(f"  groups: {dataset.groups}, by {dataset.group}")
        if dataset.split_by:
            _say(f"  kept whole when split: each {dataset.split_by}")
        if dataset.label:
            _say(f"  label: {dataset.label}")
        _say(f"  usual target: {dataset.target or 'none, it is there to be classified'}")
        _say(f"  left out unless asked for: {', '.join(dataset.noise) or 'nothing'}")
        _say(f"  source: {dataset.source}")
        _say(f"  licence: {dataset.licence}")


def main(argv: list[str] | None = None) -> None:
    """Run one command; `argv` without the program's name, or the process's own arguments.

    Raises:
        SystemExit: with 2 after a mistake of the person who types, which is told in one line on stderr.
    """
    try:
        code = app(args=argv, prog_name="tidegate", standalone_mode=False)
    except TrainingError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(_first_mistake(error))
    except typer.TyperException as error:
        _fail(error.format_message())
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(EXIT_INTERRUPTED) from None
    if code:
        raise SystemExit(code)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(EXIT_USAGE) from None


def _first_mistake(error: ValidationError) -> str:
    """Pydantic's first complaint in our words: `learning-rate: got '-1', expected: greater than 0`."""
    mistake = error.errors()[0]
    word = str(mistake["loc"][0]).replace("_", "-") if mistake["loc"] else "settings"
    expected = (
        mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ").split(", unable to parse")[0]
    )
    return f"{word}: got {mistake['input']!r}, expected: {expected}"


def _request(values: dict[str, Any]) -> Request:
    """What was asked for, with names for what was left open."""
    source = build(Source, values)
    model = values.get("name") or Path(source.data).stem
    out = values.get("out") or Path("runs") / f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    parts = {"source": source, "shape": build(Shape, values), "fit": build(Fit, values)}
    return build(Request, values, **parts, name=model, out=out)


def _need(package: str, extra: str) -> None:
    """See that the package of an extra is there."""
    if find_spec(package) is None:
        raise SettingsError(f"{extra}: needs {package}, which is not installed: pip install 'tidegate[{extra}]'")


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise SettingsError(f"threads: got {threads}, expected at least 1")
    import torch

    torch.set_num_threads(threads)


def _report(scores: Any, json_file: Path | None, **places: Path) -> None:
    """Print the table, the verdict and where things are; write them to the file if there is one."""
    from training.cli import scoreboard
    from training.judging.verdict import verdict

    _show(scoreboard.table(scores))
    _say(verdict(scores))
    for what, path in places.items():
        _say(f"{what}: {path}")
    if json_file:
        result = {what: str(path) for what, path in places.items()} | {"scores": scores.as_json()}
        _write_json(json_file, result)


def _show(table: Any) -> None:
    """Print a table: as wide as it needs, since a narrow screen must not hide numbers."""
    from training.cli.scoreboard import WIDTH

    Console(soft_wrap=True, width=max(Console().width, WIDTH)).print(table)


def _write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
