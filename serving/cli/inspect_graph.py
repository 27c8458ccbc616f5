"""`tidegate inspect FILE.onnx`: tells what a foreign graph takes and gives, and writes a `model.toml` to start from."""

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.graph_trial import try_in_process
from tidegate.cli.model_toml import model_toml
from tidegate.cli.outputs import check_outputs, replacing
from tidegate.core.external_data import external_files
from tidegate.core.findings import TrialFailed, apply_findings, ask_for_sizes
from tidegate.core.guess import Guess, guess_description, show
from tidegate.core.onnx_file import NotOnnx, OnnxFile, read_onnx

# The metadata of a graph that describes itself: `core.description` reads it.
OUR_KEY = "tidegate"
FILE_WIDTH = 200  # columns of a table, if there is no terminal


def inspect_graph(
    file: Annotated[Path, typer.Argument(help="An ONNX file of any recurrent model.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(envvar="TIDEGATE_INSPECT_OUTPUT", help="Where to write; by default model.toml beside the graph."),
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TIDEGATE_INSPECT_FILL",
            metavar="NAME=NUMBER",
            help="What it asked for: the size of a dimension, or a constant.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(envvar="TIDEGATE_INSPECT_FORCE", help="Replace an existing file.")] = False,
    timeout: Annotated[
        float,
        typer.Option(envvar="TIDEGATE_INSPECT_TIMEOUT", min=1, help="Seconds that the graph may take to load and run."),
    ] = 60.0,
) -> None:
    """Tell what an ONNX graph takes and gives, and write a model.toml to start from.

    Exit code 1 when there is something to fill in, 2 when the file cannot be read or run.
    """
    target = output or file.with_name("model.toml")
    if target.exists() and not force:
        raise CommandError(f"{target} exists: --force replaces it, --output writes to another file", EXIT_USAGE)
    check_outputs(target)
    content, beside = _read(file)
    sizes = _sizes(file, beside)
    answers = dict(map(_answer, fill or ()))
    try:
        guess = guess_description(content, answers)
        if not guess.questions:
            guess = _try(file, content, answers, file.stat().st_size + sizes, timeout)
    except (ValueError, TrialFailed) as error:
        raise CommandError(f"{file}: {error}", EXIT_USAGE) from None
    _print_signature(file, content, guess, beside)
    if OUR_KEY in content.metadata:
        print("\nthe graph describes itself in its metadata, which a server reads before a model.toml: none is written")
        return
    with replacing(target) as new:
        new.write_text(model_toml(file.name, guess), "utf-8")
    _print_result(target, guess)
    if guess.questions:
        raise typer.Exit(EXIT_FAILURE)


def _try(file: Path, content: OnnxFile, answers: Mapping[str, float], size: int, timeout: float) -> Guess:
    """The guess, completed by a trial. Where streams cannot be computed together, another batch axis is tried too.

    Raises TrialFailed.
    """
    guess = guess_description(content, answers)
    try:
        found = try_in_process(file, guess, size, timeout)
    except TrialFailed as error:
        if not (error.ran and guess.guessed_sizes):
            raise
        ask_for_sizes(guess, error)
        return guess
    for axis in guess.other_batch_axes if found.one_by_one else ():
        other = guess_description(content, answers, axis)
        with suppress(TrialFailed):
            its = try_in_process(file, other, size, timeout)
            if not its.one_by_one:
                apply_findings(other, its)
                return other
    apply_findings(guess, found)
    return guess


def _answer(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise CommandError(f"--fill: got '{text}', expected NAME=NUMBER", EXIT_USAGE)
    return name, value


def _read(file: Path) -> tuple[OnnxFile, list[str]]:
    """Reads the graph, and which files with weights are beside it.

    Its weights are not loaded: the file is mapped, and they are stepped over.
    """
    try:
        with file.open("rb") as opened:
            # It closes with its last view, and an error may still hold one.
            view = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        return read_onnx(view), external_files(view)
    except NotOnnx as error:
        raise CommandError(f"{file}: not an ONNX graph: {error}", EXIT_USAGE) from None
    except ValueError:
        raise CommandError(f"{file}: not an ONNX graph: it is empty", EXIT_USAGE) from None
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}", EXIT_USAGE) from None


def _sizes(file: Path, beside: Sequence[str]) -> int:
    """The bytes of the files with weights, none of which may be outside of the graph's folder."""
    folder, size = file.parent.resolve(), 0
    for name in beside:
        path = folder / name
        if not name or not path.resolve().is_relative_to(folder):
            raise CommandError(f"{file}: its weights are in '{name}', expected a file in its own folder", EXIT_USAGE)
        if not path.is_file():
            raise CommandError(
                f"{file}: its weights are in '{name}', which is not beside it: copy it there", EXIT_USAGE
            )
        size += path.stat().st_size
    return size


def _print_signature(file: Path, content: OnnxFile, guess: Guess, beside: Sequence[str]) -> None:
    weights = f", weights in {', '.join(beside)}" if beside else ""
    by = f", written by {content.producer}" if content.producer else ""
    print(f"{file.name}: {len(content.graph.nodes)} operators{weights}{by}\n")
    table = Table("", "name", "type", "shape", "taken for", box=None)
    for part in guess.inputs:
        role = "x, the timestep" if part is guess.inputs[0] else f"input, {_ROLES[part.kind]}"
        table.add_row("input", Text(part.name), part.dtype, Text(_shapes(part.declared, part.dims)), role)
    for state in guess.state:
        follows = Text(f"state, replaced by {state.next}")
        table.add_row("input", Text(state.name), state.dtype, Text(_shapes(state.declared, state.dims)), follows)
    for output in guess.outputs:
        table.add_row(
            "output", Text(output.name), output.dtype, Text(_shapes(output.declared, output.dims)), "prediction"
        )
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


_ROLES = {"timestep": "with each timestep", "stream": "once for a stream", "constant": "constant"}


def _shapes(declared: tuple[int | str, ...], dims: tuple[object, ...]) -> str:
    return show(dims) if list(declared) == list(dims) else f"{show(declared)} as {show(dims)}"


def _print_result(target: Path, guess: Guess) -> None:
    values = f"{guess.features} values" if guess.features else "an unknown number of values"
    window = f", the last {guess.window} of them at once" if guess.window else ""
    print(f"\na timestep is {values}{window}; " + ("tried for two timesteps" if not guess.questions else "not tried"))
    for warning in guess.warnings:
        print(f"warning: {warning}")
    for remark in guess.remarks:
        print(f"check: {remark}")
    for question in guess.questions:
        print(f"fill in: {question.text}" + (f" --fill {question.name}=..." if question.name else ""))
    print(f"written: {target}")
