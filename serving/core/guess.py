"""Guesses the description of a foreign graph, and lists what it cannot guess.

A graph tells names, types and dimensions; `state_pairs` guesses what is state. What is left are dimensions that are
open, inputs that are no state, and graphs without state. What is only probable is a remark, what is not known a
question: it is asked by name and never filled in.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tidegate.core.dataflow import Dataflow
from tidegate.core.onnx_file import FileTensor, OnnxFile
from tidegate.core.state_pairs import Pair, Roles, guess_roles

DARTS_KEY = "darts.onnx_spec"

# A size, the batch, or None for one that is not known.
Dim = int | Literal["batch"] | None

BATCH = re.compile(r"(?i)^(batch\w*|b|n|bs|bsz|unk__\d+)$")
TIME = re.compile(r"(?i)time|seq|len|frame|step|sample|window|chunk|^t$|^s$|^l$|^dim_\d+_1$")
RATE = re.compile(r"(?i)^(sr|fs|rate|sample_?rate|sampling_?rate)$")
LENGTH = re.compile(r"(?i)len")
MASK = re.compile(r"(?i)mask|valid")
TRAINING = re.compile(r"(?i)train")
# The rate that nearly every model of speech is made for.
SAMPLE_RATE = 16_000


@dataclass(frozen=True, slots=True)
class GuessedTensor:
    """An input or output. `declared` are the dimensions as in the graph, `dims` what they are taken for."""

    name: str
    dtype: str
    declared: tuple[int | str, ...]
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class GuessedInput(GuessedTensor):
    """An input that is not state. `value` is that of a constant, None when it is not known."""

    kind: Literal["timestep", "stream", "constant"] = "timestep"
    value: float | None = None


@dataclass(frozen=True, slots=True)
class GuessedState(GuessedTensor):
    """A state. `sure` tells whether an operator or a name says which output replaces it."""

    next: str = ""
    sure: bool = True
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What is not known. `name` is what the answer is given for; "" where it takes another graph to answer."""

    name: str
    text: str


@dataclass(slots=True)
class Guess:
    """A description with gaps.

    The first input is x. Of a graph without state, `window_axis` is the axis of x with the last timesteps, and `window`
    how many they are, None when that is not known. `guessed_sizes` are those of the open dimensions of x.
    """

    inputs: list[GuessedInput]
    state: list[GuessedState]
    outputs: list[GuessedTensor]
    window: int | None = None
    window_axis: int | None = None
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    guessed_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def batched(self) -> bool:
        """Whether streams can be computed together; else rows run one by one."""
        return all("batch" in part.dims for part in (self.inputs[0], *self.state))

    @property
    def other_batch_axes(self) -> list[int]:
        """Which axes of x could be the batch too: they are open, and not the last one."""
        x = self.inputs[0]
        return [
            axis
            for axis, size in enumerate(x.declared[:-1])
            if isinstance(size, str) and x.dims[axis] != "batch" and axis != self.window_axis
        ]

    @property
    def features(self) -> int | None:
        """The number of values of a timestep, None when it is not known."""
        # Rows that run one by one have a batch axis of size 1 in the graph, which changes no product.
        row = [size for axis, size in enumerate(self.inputs[0].dims) if size != "batch" and axis != self.window_axis]
        return None if None in row else math.prod(size for size in row if isinstance(size, int))


def guess_description(
    file: OnnxFile, answers: Mapping[str, float] | None = None, batch_axis: int | None = None
) -> Guess:
    """Guesses the description of a graph.

    Args:
        file: the graph.
        answers: what a user knows: sizes of open dimensions, values of constants, and `window`, by the name of a
            `Question`. They go before what would be guessed.
        batch_axis: the batch axis of x, where it is known; see `Guess.other_batch_axes`.

    Raises:
        ValueError: the graph has no inputs, or an answer is to nothing that is open.

    """
    graph = file.graph
    if not graph.inputs:
        raise ValueError("the graph has no inputs, so it cannot be given a timestep")
    flow = Dataflow(graph)
    darts = _read_darts(file.metadata.get(DARTS_KEY))
    roles = _darts_roles(darts) if darts else guess_roles(graph, flow)
    tensors = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
    guesser = _Guesser(tensors, roles, answers or {}, batch_axis)
    guess = guesser.guess()
    if unused := guesser.unused():
        opened = ", ".join(guesser.open_names()) or "nothing"
        raise ValueError(f"'{unused[0]}' is not open in this graph, expected one of: {opened}")
    if darts:
        guess.remarks.append(
            "read from darts' own metadata; it does not scale, so send values as the network was fitted on"
        )
        # The parameters of a likelihood, in the order of the last dimension, are worth knowing.
        if darts.get("likelihood_parameter_names"):
            guess.remarks.append(
                f"the last dimension of the prediction is {', '.join(darts['likelihood_parameter_names'])}"
            )
    _warn_of_lost_state(guess, flow.begins_anew())
    return guess


class _Guesser:
    """Fills in the dimensions of all tensors, in one order: x, state, other inputs, outputs."""

    def __init__(
        self, tensors: dict[str, FileTensor], roles: Roles, answers: Mapping[str, float], batch_axis: int | None
    ) -> None:
        self._tensors = tensors
        self._roles = roles
        self._answers = answers
        self._asked: dict[str, None] = {}  # what could be answered, in order
        self._pins: dict[str, int | None] = {}  # by the name of an open dimension
        self._x = tensors[roles.x]
        self._guessed: dict[str, int] = {}  # the sizes of open dimensions of x that nobody has answered
        self._batch_axis = self._find_batch_axis() if batch_axis is None else batch_axis

    def guess(self) -> Guess:
        x = self._guess_x()
        guess = Guess([x], [self._guess_state(pair) for pair in self._roles.pairs], [])
        guess.inputs += [self._guess_other(name) for name in self._roles.others]
        for name in self._roles.predictions:
            tensor = self._tensors[name]
            guess.outputs.append(GuessedTensor(name, tensor.dtype, tensor.dims, self._dims_of_output(tensor)))
        guess.guessed_sizes = self._guessed
        self._guess_window(guess)
        self._ask(guess)
        self._remark(guess)
        return guess

    def unused(self) -> list[str]:
        """The answers to nothing."""
        return [name for name in self._answers if name not in self._asked]

    def open_names(self) -> list[str]:
        """What can be answered."""
        return list(self._asked)

    def _answer(self, name: str) -> float | None:
        self._asked[name] = None
        return self._answers.get(name)

    def _size(self, tensor: FileTensor, axis: int, guessed: int | None) -> int | None:
        """The size of an open dimension: as answered, or else as guessed."""
        answer = self._answer(_name_of(tensor.name, tensor.dims, axis))
        return guessed if answer is None else int(answer)

    def _find_batch_axis(self) -> int | None:
        """The axis of x that is the batch; None where it is fixed, or a state has none."""
        dims = self._x.dims
        named = [axis for axis, size in enumerate(dims) if isinstance(size, str) and BATCH.match(size)]
        first = dims[:1] and isinstance(dims[0], str) and not TIME.search(dims[0])
        axis = named[0] if named else 0 if first else None
        states = [self._tensors[pair.name] for pair in self._roles.pairs]
        if axis is not None and all(any(isinstance(size, str) for size in state.dims) for state in states):
            return axis
        return None

    def _open_axis(self, tensor: FileTensor) -> int | None:
        """The batch axis of another input or a state: the dimension with the name of x's, else the first open one."""
        if self._batch_axis is None:
            return None
        name = self._x.dims[self._batch_axis]
        if name and name in tensor.dims:
            return tensor.dims.index(name)
        opened = [axis for axis, size in enumerate(tensor.dims) if isinstance(size, str) and not TIME.search(size)]
        return opened[0] if opened else None

    def _guess_x(self) -> GuessedInput:
        """The dimensions of x. With state, one call is one timestep, so an axis of time has the size 1."""
        x = self._x

        def size_of(axis: int, size: str) -> int | None:
            last = axis == len(x.dims) - 1
            one = (axis == 0 and not last) or (bool(self._roles.pairs) and not last)
            value = self._size(x, axis, 1 if one else self._silero_width() if last else None)
            self._pins[size] = value
            name = _name_of(x.name, x.dims, axis)
            if value is not None and name not in self._answers:
                self._guessed[name] = value
            return value

        return GuessedInput(x.name, x.dtype, x.dims, _dims(x, self._batch_axis, size_of))

    def _silero_width(self) -> int | None:
        """The samples of a call of Silero VAD, which no graph of it tells: 512 at 16 kHz, since version 5 behind 64 old ones."""
        states = sorted((pair.name, *self._tensors[pair.name].dims[::2]) for pair in self._roles.pairs)
        if self._x.name == "input" and states == [("c", 2, 64), ("h", 2, 64)]:
            return 512
        if self._x.name == "input" and states == [("state", 2, 128)]:
            return 576
        return None

    def _guess_state(self, pair: Pair) -> GuessedState:
        tensor = self._tensors[pair.name]

        def size_of(axis: int, size: str) -> int | None:
            if self._batch_axis is None and (BATCH.match(size) or (size and size == self._x.dims[0])):
                return 1
            return self._size(tensor, axis, self._pins.get(size) if size else None)

        dims = _dims(tensor, self._open_axis(tensor), size_of)
        return GuessedState(tensor.name, tensor.dtype, tensor.dims, dims, pair.next, pair.sure)

    def _guess_other(self, name: str) -> GuessedInput:
        tensor = self._tensors[name]

        def size_of(axis: int, size: str) -> int | None:
            time = axis != len(tensor.dims) - 1 and bool(TIME.search(size))
            guessed = self._pins.get(size, 1 if time or BATCH.match(size) else None) if size else None
            return self._size(tensor, axis, guessed)

        dims = _dims(tensor, self._open_axis(tensor), size_of)
        kind, value = _kind_of(tensor, self._x)
        if kind == "constant":
            answer = self._answer(tensor.name)
            value = value if answer is None else answer
        return GuessedInput(tensor.name, tensor.dtype, tensor.dims, dims, kind, value)

    def _dims_of_output(self, tensor: FileTensor) -> tuple[Dim, ...]:
        """The dimensions of an output, as far as their names show them; a trial run finds the others."""
        return _dims(tensor, self._open_axis(tensor), lambda _, size: self._pins.get(size) if size else None)

    def _guess_window(self, guess: Guess) -> None:
        """Without state, the second axis of x is a window of timesteps."""
        x = guess.inputs[0]
        places = [place for place in range(len(x.dims)) if x.dims[place] != "batch"]
        if self._batch_axis is None and x.dims[:1] == (1,):
            places = places[1:]
        if guess.state or len(places) < 2:
            return
        size = x.dims[places[0]]
        if size is None and (answer := self._answer("window")) is not None:
            size = int(answer)
            guess.inputs[0] = replace(
                x, dims=tuple(size if axis == places[0] else dim for axis, dim in enumerate(x.dims))
            )
        if isinstance(size, int) and size > 1:
            guess.window, guess.window_axis = size, places[0]
        elif size is None:
            guess.window_axis = places[0]
            what = f"input '{x.name}' takes any number of timesteps, and the graph has no state: how many of the last ones?"
            guess.questions.append(Question("window", what))

    def _ask(self, guess: Guess) -> None:
        for tensor in (*guess.inputs, *guess.state):
            for axis, size in enumerate(tensor.dims):
                if size is None and not (tensor is guess.inputs[0] and axis == guess.window_axis):
                    name = _name_of(tensor.name, tensor.declared, axis)
                    what = f"how large is dimension {axis} of '{tensor.name}' {show(tensor.declared)}?"
                    guess.questions.append(Question(name, what))
        guess.questions += [
            Question(
                part.name, f"what is the value of the constant '{part.name}' ({part.dtype} {show(part.declared)})?"
            )
            for part in guess.inputs
            if part.kind == "constant" and part.value is None
        ]

    def _remark(self, guess: Guess) -> None:
        x = guess.inputs[0]
        if guess.state and self._silero_width() in x.dims:
            guess.remarks.append(
                f"looks like Silero VAD at 16 kHz: a timestep is {x.dims[-1]} samples"
                + (", the last 64 of the timestep before and then 512 new ones" if x.dims[-1] == 576 else "")
            )
        guess.remarks += [
            f"state '{state.name}': '{state.next}' is guessed to be its next value, because it fits; check it"
            for state in guess.state
            if not state.sure
        ]
        for part in guess.inputs[1:]:
            if part.kind == "constant" and part.value is not None:
                guess.remarks.append(f"input '{part.name}' is guessed to be a constant, {part.value:g}; check it")
            elif part.kind != "constant":
                when = (
                    "each timestep brings it" if part.kind == "timestep" else "a stream brings it once, when it begins"
                )
                guess.remarks.append(f"input '{part.name}': guessed that {when}; check it")
        first = x.declared[:1]
        if not guess.batched and len(x.declared) > 1 and isinstance(first[0], int) and first[0] > 1:
            guess.remarks.append(
                f"the first dimension of '{x.name}' is {first[0]} and taken as part of a timestep; if it is the batch, "
                "export the graph again with an open one"
            )
        elif not guess.batched:
            guess.remarks.append("the graph takes one stream at a time, so rows run one by one")


def _kind_of(tensor: FileTensor, x: FileTensor) -> tuple[Literal["timestep", "stream", "constant"], float | None]:
    """Where the values of an input come from that is neither x nor state, and the value of a constant."""
    if RATE.match(tensor.name):
        return "constant", float(SAMPLE_RATE)
    if MASK.search(tensor.name) or (LENGTH.search(tensor.name) and "int" in tensor.dtype):
        return "constant", 1.0
    if TRAINING.search(tensor.name):
        return "constant", 0.0
    batched = any(isinstance(size, str) for size in tensor.dims)
    # One number beside a longer x is a setting; so is an integer that streams do not have each for themselves.
    single = all(size == 1 for size in tensor.dims) and any(size != 1 for size in x.dims)
    if not tensor.dims or single or not (batched or "float" in tensor.dtype):
        return "constant", None
    return ("timestep" if len(tensor.dims) == len(x.dims) else "stream"), None


def _read_darts(metadata: str | None) -> dict[str, list[str]] | None:
    """The metadata that darts writes; None where it is not there or not readable."""
    try:
        spec = json.loads(metadata or "")
        names = [
            spec[key] for key in ("feature_input_names", "output_names", "state_input_names", "state_output_names")
        ]
    except (ValueError, KeyError, TypeError):
        return None
    return spec if all(isinstance(part, list) for part in names) and names[0] and names[1] else None


def _darts_roles(spec: dict[str, list[str]]) -> Roles:
    pairs = zip(spec["state_input_names"], spec["state_output_names"], strict=True)
    return Roles(
        spec["feature_input_names"][0],
        tuple(spec["feature_input_names"][1:]),
        tuple(Pair(name, following, sure=True) for name, following in pairs),
        tuple(name for name in spec["output_names"] if name not in spec["state_output_names"]),
    )


def _warn_of_lost_state(guess: Guess, anew: Sequence[str]) -> None:
    """Warns where a recurrent network starts anew in every call."""
    what = f"{len(anew)} recurrent operator{'s' if len(anew) > 1 else ''} ({', '.join(sorted(set(anew)))})"
    if guess.state:
        if anew:
            guess.remarks.append(
                f"{what} start from the same values in every call: right where they run over frequencies or the values "
                "of one timestep, wrong where they run over time"
            )
        return
    if guess.window or guess.questions:
        if anew:
            guess.warnings.append(
                f"no input and no output is state, and {what} start from the same values in every call: nothing is kept "
                "between timesteps but the window"
            )
        return
    guess.warnings.append(
        "no input and no output is state"
        + (f", and {what} start from the same values in every call" if anew else "")
        + ": each timestep is answered as if it were the first. If the network is recurrent, its exporter froze the state, as "
        "Keras does with stateful=True: export it with the state as inputs and outputs (return_state=True, initial_state=...). "
        "If x is the last N timesteps of one series, write window = N and features = 1"
    )


def _dims(tensor: FileTensor, batch_axis: int | None, size_of: Callable[[int, str], int | None]) -> tuple[Dim, ...]:
    """The dimensions of a tensor. `size_of` gives the size of an open one, from its axis and its name."""
    return tuple(
        "batch" if axis == batch_axis else size if isinstance(size, int) else size_of(axis, size)
        for axis, size in enumerate(tensor.dims)
    )


def _name_of(tensor: str, dims: Sequence[int | str], axis: int) -> str:
    """What an open dimension is called: by its name, or by its tensor and place where it has none."""
    return str(dims[axis]) or f"{tensor}.{axis}"


def show(dims: Sequence[object]) -> str:
    """Dimensions as messages write them."""
    return "[" + ", ".join(str(size) if size not in {None, ""} else "?" for size in dims) + "]"
