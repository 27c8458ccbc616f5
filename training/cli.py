"""The commands `train`, `evaluate`, `export` and `datasets`. The only place that prints and knows exit codes.

A mistake of the person who types is one line on stderr and exit code 2, never a traceback. torch, onnx and pyarrow take
seconds to load, so they are imported by the commands that use them and `--help` does not wait.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from training import datasets as named
from training.errors import SettingsError, TrainingError
from training.settings import Fit, Request, Shape, Source

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Train recurrent networks on sensor series.")

FIT, SHAPE = Fit(), Shape()  # the defaults, written down once


def _option(name: str, about: str) -> Any:
    """An option `--name` that can also be given as the environment variable TIDEGATE_NAME."""
    return typer.Option(f"--{name}", envvar=f"TIDEGATE_{name.upper().replace('-', '_')}", help=about)


Time = Annotated[str | None, _option("time", "The time column; found by itself when there is only one.")]
Models = Annotated[Path, _option("models", "The folder of models.")]
Name = Annotated[str | None, _option("name", "The model's name; the data's name when not given.")]
Version = Annotated[int | None, _option("version", "The version to write; the next free one when not given.")]
Season = Annotated[int | None, _option("season", "Timesteps of the seasonal-naive baseline; a day when not given.")]
Json = Annotated[Path | None, _option("json", "Also write the result to this file, as JSON.")]


@app.command()
def train(
    *,
    data: Annotated[str, _option("data", "A named data set, or a .csv or .parquet file.")] = "appliances",
    target: Annotated[str, _option("target", "Columns to forecast, by commas.")] = "",
    horizons: Annotated[str, _option("horizons", "How many timesteps ahead, by commas.")] = "1,6,36,144",
    time: Time = None,
    columns: Annotated[str, _option("columns", "Take only these columns, by commas.")] = "",
    exclude: Annotated[str, _option("exclude", "Leave these columns out, by commas.")] = "",
    hidden: Annotated[int, _option("hidden", "Units of a layer.")] = SHAPE.hidden,
    layers: Annotated[int, _option("layers", "Recurrent layers.")] = SHAPE.layers,
    dropout: Annotated[float, _option("dropout", "Between layers.")] = SHAPE.dropout,
    epochs: Annotated[int, _option("epochs", "Stop after so many.")] = FIT.epochs,
    minutes: Annotated[
        float | None, _option("minutes", "Stop after so long; the result then depends on speed.")
    ] = None,
    lanes: Annotated[int, _option("lanes", "Rows of a batch.")] = FIT.lanes,
    chunk: Annotated[int, _option("chunk", "Timesteps that a gradient reaches back.")] = FIT.chunk,
    burn_in: Annotated[int, _option("burn-in", "Timesteps that only warm the state up.")] = FIT.burn_in,
    learning_rate: Annotated[float, _option("learning-rate", "The highest of the schedule.")] = FIT.learning_rate,
    weight_decay: Annotated[float, _option("weight-decay", "Of AdamW.")] = FIT.weight_decay,
    clip: Annotated[float, _option("clip", "Largest norm of the gradient.")] = FIT.clip,
    hide: Annotated[float, _option("hide", "Share of values made missing.")] = FIT.hide,
    patience: Annotated[int, _option("patience", "Stop after so many epochs without a better score.")] = FIT.patience,
    seed: Annotated[int, _option("seed", "The same seed gives the same weights.")] = FIT.seed,
    threads: Annotated[int, _option("threads", "For torch; more are seldom faster.")] = 1,
    season: Season = None,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = None,
    out: Annotated[Path | None, _option("out", "The run folder; a new one under runs/ when not given.")] = None,
    held_out: Annotated[Path | None, _option("held-out", "Write the rows that were not learned from, as CSV.")] = None,
    json_file: Json = None,
) -> None:
    """Train on a series, export the graph, score it on the held-out part, and write a version of the model."""
    model = name or Path(data).stem
    # Read before torch is loaded, so that a wrong option is told at once.
    request = Request(
        source=Source(data=data, time=time, columns=_names(columns), exclude=_names(exclude)),
        targets=_names(target),
        horizons=_numbers("horizons", horizons),
        shape=Shape(hidden=hidden, layers=layers, dropout=dropout),
        fit=Fit(
            epochs=epochs,
            minutes=minutes,
            lanes=lanes,
            chunk=chunk,
            burn_in=burn_in,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip=clip,
            hide=hide,
            patience=patience,
            seed=seed,
        ),
        season=season,
        models=models,
        name=model,
        version=version,
        out=out or Path("runs") / f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        held_out=held_out,
    )
    _set_threads(threads)
    from training.pipeline import train as learn
    from training.progress import FitProgress

    with FitProgress(Console(stderr=True, soft_wrap=True)) as progress:
        published = learn(request, progress.show, progress.note)
    _report(published.scores, json_file, model=published.folder, run=request.out)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A version's folder, or its model.onnx.")],
    data: Annotated[str | None, _option("data", "Other data than the card names; all of its rows are scored.")] = None,
    time: Time = None,
    season: Season = None,
    json_file: Json = None,
) -> None:
    """Replay data through an exported graph, step by step, and print its scores beside the baselines."""
    from training.pipeline import judge

    _report(judge(model, data=data, time=time, season=season), json_file, model=model)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `tidegate train` wrote.")],
    data: Annotated[str | None, _option("data", "Where the run's data is now, if it was moved.")] = None,
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
    """Pydantic's first complaint in our words: `learning-rate: got -1.0, expected greater than 0`."""
    mistake = error.errors()[0]
    option = ".".join(str(part) for part in mistake["loc"]).replace("_", "-")
    return f"{option}: got {mistake['input']!r}, expected: {mistake['msg'].removeprefix('Input should be ')}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers by commas, each once, in rising order.

    Raises:
        SettingsError: something else was given.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or sorted(set(numbers)) != list(numbers):
        raise SettingsError(f"{option}: got {text!r}, expected rising whole numbers by commas, such as 1,6,36")
    return numbers


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise SettingsError(f"threads: got {threads}, expected at least 1")
    import torch

    torch.set_num_threads(threads)


def _report(scores: Any, json_file: Path | None, **places: Path) -> None:
    """Print the table, the verdict and where things are; write them to the file if there is one."""
    from training import scoreboard

    console = Console(soft_wrap=True)
    console.print(scoreboard.table(scores))
    _say(scoreboard.verdict(scores))
    for what, path in places.items():
        _say(f"{what}: {path}")
    if json_file:
        result = {what: str(path) for what, path in places.items()} | {"scores": scores.as_json()}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
