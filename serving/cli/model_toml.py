"""Writes what was guessed of a foreign graph as a `model.toml` to start from."""

import json

from tidegate.core.guess import Dim, Guess, GuessedInput, GuessedTensor


def model_toml(name: str, guess: Guess) -> str:
    """The text of a `model.toml`. Questions are comments at the places to fill in, and `?` stands for what is not known."""
    lines = [
        f"# Written by `tidegate inspect {name}`. Check what is marked with CHECK, and fill in what is marked with FILL IN.",
        "# docs/model.md tells what each key means.",
        *(f"# WARNING: {warning}" for warning in guess.warnings),
        *(f"# CHECK: {remark}" for remark in guess.remarks),
        *(f"# FILL IN: {question.text}" for question in guess.questions),
        "",
        "contract = 1",
        f"input = {_text(guess.inputs[0].name)}",
        '# A number, or names: features = [{name = "T1", unit = "°C", low = 16.8, high = 26.3}, ...]',
        f"features = {_number(guess.features)}",
    ]
    if guess.window:
        lines.append(f"window = {guess.window}")
    elif guess.window_axis is not None:
        lines.append("window = ?")
    lines += _inputs(guess)
    for output in guess.outputs:
        lines += ["", "[[outputs]]", f"name = {_text(output.name)}", *_shape(output, alone=not guess.batched)]
    for state in guess.state:
        lines += ["", "[[state]]", f"name = {_text(state.name)}", f"next = {_text(state.next)}", *_shape(state)]
        if not state.finite:
            lines.append("finite = false")
    return "\n".join(lines) + "\n"


def _inputs(guess: Guess) -> list[str]:
    lines = []
    for part in guess.inputs:
        window = guess.window_axis if part is guess.inputs[0] else None
        alone = not guess.batched and part.kind != "constant"
        lines += ["", "[[inputs]]", f"name = {_text(part.name)}", *_shape(part, window=window, alone=alone)]
        if part.kind == "stream":
            lines.append('per = "stream"')
        if part.kind == "constant":
            lines.append(f"value = {_value(part)}")
    return lines


def _shape(tensor: GuessedTensor, *, window: int | None = None, alone: bool = False) -> list[str]:
    """The shape. Of a graph that takes one stream at a time, a first dimension of 1 is the batch, and no part of a row."""
    dims: list[Dim | str] = ["window" if axis == window else size for axis, size in enumerate(tensor.dims)]
    if alone and tensor.declared[:1] == (1,):
        dims[0] = "batch"
    return [f"shape = [{', '.join(_text(size) if isinstance(size, str) else _number(size) for size in dims)}]"]


def _value(part: GuessedInput) -> str:
    if part.value is None:
        return "?"
    if part.dtype == "bool":
        return "true" if part.value else "false"
    return repr(part.value) if part.dtype.startswith("float") else str(int(part.value))


def _number(size: object) -> str:
    return "?" if size is None else str(size)


def _text(name: str) -> str:
    """A TOML string. Its escapes are those of JSON, as long as characters beyond ASCII are not escaped."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
