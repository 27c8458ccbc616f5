"""Checks the inputs and outputs of a graph against its description. The result is the `Spec` of the model.

A dimension of a graph is a number, or open: then it has a name, or none. The description says which one is the batch, and
gives the others a number. Where it leaves a shape out, and the graph has at most one open dimension, that one is the
batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tidegate.core.description import Described, DescribedInput, DescribedOutput, DescribedState, Description
from tidegate.core.errors import ContractBroken
from tidegate.core.fingerprint import fingerprint
from tidegate.core.initial_value import NotAValueError, read_values
from tidegate.core.spec import Constant, Feature, Input, Output, Spec, StateTensor

DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
}
Dims = Sequence[int | str]
Guess = Callable[[Dims], tuple[int | str, ...] | None]


class _Row(NamedTuple):
    """A tensor, as its description and the graph agree on it."""

    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]  # with "batch" and "window" in their places
    one_by_one: bool  # whether the graph takes a single row only

    @property
    def shape(self) -> tuple[int, ...]:
        """That of one stream, and of one timestep."""
        return tuple(size for size in self.dims if isinstance(size, int))

    @property
    def batch_axis(self) -> int | None:
        return self.dims.index("batch") if "batch" in self.dims else None

    @property
    def window_axis(self) -> int:
        """Its position in a row of the graph."""
        row = [size for size in self.dims if size != "batch"]
        return row.index("window") if "window" in row else 0


def read_spec(name: str, version: str, digest: str, session: Any, described: Described) -> Spec:
    """Checks a loaded graph against its description, and returns what it serves under that name and version.

    `digest` is the SHA-256 of the model's files, `session` an onnxruntime session.

    Raises ContractBroken when the description has mistakes, or the graph does not match it. The error has all of them.
    """
    where = f"{name}/{version}"
    if described.description is None:
        raise ContractBroken(where, *described.mistakes)
    reader = _Reader(session, described.description, described.dropped)
    spec = reader.read(name, version)
    mistakes = (*described.mistakes, *reader.mistakes)
    if mistakes or spec is None:
        raise ContractBroken(where, *mistakes)
    # A graph that describes itself has one hash, and streams were stored under it before there was any other kind.
    return replace(spec, fingerprint=digest if described.embedded else fingerprint(digest, spec))


def graph_shapes(session: Any) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input and output of a loaded graph; an open dimension has its name, or `?`."""
    return {tensor.name: _dims(tensor) for tensor in (*session.get_inputs(), *session.get_outputs())}


def format_shape(shape: Dims) -> str:
    """A shape as messages write it."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


class _Tensors:
    """The inputs or the outputs of a graph. `left` are those that the description has not mentioned yet."""

    def __init__(self, kind: str, tensors: Sequence[Any]) -> None:
        self.kind = kind
        self.all = {tensor.name: tensor for tensor in tensors}
        self.left = list(self.all)

    def take(self, name: str) -> Any:
        """The tensor of that name, or None."""
        if name in self.left:
            self.left.remove(name)
        return self.all.get(name)


class _Reader:
    """Reads one description against one graph, and gathers the mistakes. A part with a mistake is None."""

    def __init__(self, session: Any, described: Description, dropped: frozenset[str]) -> None:
        self._inputs = _Tensors("input", session.get_inputs())
        self._outputs = _Tensors("output", session.get_outputs())
        self._described = described
        self._dropped = dropped
        self._one_by_one = False
        self.mistakes: list[str] = []

    def read(self, name: str, version: str) -> Spec | None:
        """The spec, without its fingerprint; None when there are mistakes."""
        described = self._described
        given = [described.x, *(part for part in described.others if part.value is None)]
        inputs = [self._read_input(part) for part in given]
        constants = [self._read_constant(part) for part in described.others if part.value is not None]
        state = [self._read_state(part) for part in described.state]
        state += [
            self._window_state(*pair) for pair in zip(given, inputs, strict=True) if pair[1] and pair[1].window > 1
        ]
        outputs = [self._read_output(part) for part in described.outputs]
        for ignored in described.ignore:
            if self._outputs.take(ignored) is None:
                self.mistakes.append(f"ignore: '{ignored}' is not an output of the graph; remove it")
        self._check_left(self._inputs, ("inputs", "state"), "describe it under state, or under inputs")
        self._check_left(
            self._outputs, ("outputs", "state", "ignore"), "describe it under outputs, or name it under ignore"
        )
        if self.mistakes:
            return None
        return Spec(
            name=name,
            version=version,
            fingerprint="",
            task=described.task,
            period_s=described.period_s,
            handles_missing=described.handles_missing,
            features=_features(described),
            outputs=tuple(part for part in outputs if part),
            state=tuple(part for part in state if part),
            inputs=tuple(sorted((part for part in inputs if part), key=lambda part: part.kind == "stream")),
            constants=tuple(part for part in constants if part),
            batches=not self._one_by_one,
        )

    def _read_input(self, part: DescribedInput) -> Input | None:
        is_x = part.name == self._described.input
        features = len(_features(self._described))
        guess = _guess_x(features, part.window or 1) if is_x else _guess
        hint = f" for {features} features" if is_x and part.shape is None else ""
        row = self._read_row(self._inputs, part.name, part.shape, guess, part.window or 1, hint)
        if row is None:
            return None
        self._one_by_one |= row.one_by_one
        size = math.prod(row.shape)
        if is_x and size != features:
            self.mistakes.append(
                f"input '{part.name}' has {size} values in a timestep of shape {format_shape(row.shape)}, "
                f"but there are {features} features; write features = {size}, or name each of them"
            )
        return Input(part.name, row.dtype, row.shape, row.batch_axis, part.per, part.window or 1, row.window_axis)

    def _read_constant(self, part: DescribedInput) -> Constant | None:
        row = self._read_row(self._inputs, part.name, part.shape, _guess)
        if row is None:
            return None
        value = self._read_values(f"input '{part.name}'", part.value, row.dtype, row.shape, finite=False)
        self._one_by_one |= "batch" in row.dims and row.one_by_one
        return None if value is None else Constant(part.name, value, row.batch_axis)

    def _read_state(self, part: DescribedState) -> StateTensor | None:
        row = self._read_row(self._inputs, part.name, part.shape, _guess)
        if row is None:
            self._outputs.take(part.next)
            return None
        next_row = self._read_row(self._outputs, part.next, row.dims, _guess, hint=self._crossed(part, row.dims))
        if next_row is None:
            return None
        if next_row.dtype != row.dtype:
            self.mistakes.append(
                f"output '{part.next}' is {next_row.dtype}, expected {row.dtype} like state '{part.name}'"
                f"{self._crossed(part, row.dims)}"
            )
        self._one_by_one |= row.one_by_one or next_row.one_by_one
        title = f"state '{part.name}'"
        initial = self._read_values(title, part.initial, row.dtype, row.shape, finite=part.finite)
        if initial is None:
            return None
        return StateTensor(part.name, part.next, row.dtype, row.shape, row.batch_axis, initial, part.finite)

    def _window_state(self, part: DescribedInput, given: Input | None) -> StateTensor | None:
        """The timesteps before this one, which the server keeps for a graph with a window. They were checked before."""
        assert given is not None
        initial = self._read_values(
            f"input '{part.name}'", part.initial, given.dtype, given.shape, finite=not self._described.handles_missing
        )
        if initial is None:
            return None
        shape = (given.window - 1, *given.shape)
        initial = np.broadcast_to(initial, shape).copy()
        return StateTensor(part.name, "", given.dtype, shape, 0, initial, finite=False)

    def _read_output(self, part: DescribedOutput) -> Output | None:
        row = self._read_row(self._outputs, part.name, part.shape, _guess)
        if row is None:
            return None
        self._one_by_one |= row.one_by_one
        return Output(
            part.name, row.dtype, row.shape, part.targets, part.units, part.horizons, part.quantiles, row.batch_axis
        )

    def _read_row(
        self, tensors: _Tensors, name: str, described: Dims | None, guess: Guess, window: int = 1, hint: str = ""
    ) -> _Row | None:
        """Compares a tensor with its description. `guess` gives its dimensions where they are not described."""
        title = f"{tensors.kind} '{name}'"
        expected = ", ".join(tensors.left or tensors.all) or "none"
        tensor = tensors.take(name)
        if tensor is None:
            self.mistakes.append(f"{title} is not in the graph, expected one of {expected}")
            return None
        found = self._mismatch(tensor, described, guess, window)
        if isinstance(found, str):
            self.mistakes.append(f"{title} {found}{hint}")
            return None
        if tensor.type not in DTYPES:
            self.mistakes.append(f"{title} is {tensor.type}, expected one of {', '.join(DTYPES)}")
            return None
        return found

    def _mismatch(self, tensor: Any, described: Dims | None, guess: Guess, window: int) -> _Row | str:
        """The tensor, or what is wrong with its shape."""
        graph = _dims(tensor)
        dims = guess(graph) if described is None else tuple(described)
        if dims is None:
            return (
                f"has shape {format_shape(graph)} with several open dimensions; describe its shape: "
                'a number for each of them, and "batch" for the batch'
            )
        if dims.count("batch") > 1 or dims.count("window") != (window > 1):
            places = (
                "exactly one dimension to be the batch"
                if dims.count("batch") > 1
                else 'one "window" where the input has a window'
            )
            return f"has shape {format_shape(dims)} in its description, expected {places}"
        # An output whose shape the exporter did not know has none in the graph. The check at load sees what comes out.
        unknown = not graph and described is not None and tensor in self._outputs.all.values()
        if not unknown and not _fits(graph, dims, window):
            batch = dims.index("batch") if "batch" in dims and len(dims) == len(graph) else None
            fixed = (
                f"; its batch is fixed at {graph[batch]}, export it with an open one"
                if batch is not None and isinstance(graph[batch], int) and graph[batch] != 1
                else ""
            )
            return f"has shape {format_shape(graph)}, expected {format_shape(dims)}{fixed}"
        single = "batch" not in dims or (not unknown and graph[dims.index("batch")] == 1)
        return _Row(DTYPES.get(tensor.type, np.dtype(np.void)), dims, single)

    def _crossed(self, part: DescribedState, dims: Dims) -> str:
        """A hint when the next value of another state tensor fits this one."""
        own = self._inputs.all[part.name].type
        for other in self._described.state:
            tensor = self._outputs.all.get(other.next)
            if other is not part and tensor is not None and tensor.type == own and _fits(_dims(tensor), dims, 1):
                return f"; '{other.next}' fits: are the next values of '{part.name}' and '{other.name}' exchanged?"
        return ""

    def _read_values(
        self, title: str, numbers: Any, dtype: np.dtype[Any], shape: tuple[int, ...], *, finite: bool
    ) -> Any:
        try:
            return read_values(numbers, dtype, shape, finite=finite)
        except NotAValueError as error:
            self.mistakes.append(f"{title} has {error}")
            return None

    def _check_left(self, tensors: _Tensors, lists: Sequence[str], remedy: str) -> None:
        """Checks that the description mentions every tensor. Parts with mistakes may have mentioned one."""
        if self._dropped.intersection(lists):
            return
        left = [name for name in tensors.left if name not in self._dropped]
        if left:
            self.mistakes.append(
                f"{tensors.kind} {', '.join(left)} is in the graph, but its description does not mention it; {remedy}"
            )


def _features(described: Description) -> tuple[Feature, ...]:
    if isinstance(described.features, int):
        return tuple(Feature(f"{described.input}{index}") for index in range(described.features))
    return tuple(
        Feature(part.name, part.unit, part.low, part.high, part.mean, part.std, part.categories)
        for part in described.features
    )


def _dims(tensor: Any) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else size or "?" for size in tensor.shape)


def _fits(graph: Dims, dims: Dims, window: int) -> bool:
    """Whether a graph can have a tensor of these dimensions. A batch that is fixed can only be 1."""
    sizes = [{"batch": 1, "window": window}.get(size, size) if isinstance(size, str) else size for size in dims]
    return len(graph) == len(sizes) and all(
        isinstance(have, str) or have == size for have, size in zip(graph, sizes, strict=True)
    )


def _guess(graph: Dims) -> tuple[int | str, ...] | None:
    """The dimensions where the description has none: one that is open is the batch. None when several are."""
    if sum(isinstance(size, str) for size in graph) > 1:
        return None
    return tuple("batch" if isinstance(size, str) else size for size in graph)


def _guess_x(features: int, window: int) -> Guess:
    """The same for x. A row of one dimension has the features; a window comes behind the batch."""

    def guess(graph: Dims) -> tuple[int | str, ...] | None:
        leading = ("batch", "window") if window > 1 else ("batch",)
        row = graph[len(leading) :]
        opened = [axis for axis, size in enumerate(graph) if isinstance(size, str)]
        if len(row) == 1 and opened != [len(leading)]:
            return (*leading, features)
        if window == 1:
            return _guess(graph)
        return None if any(isinstance(size, str) for size in row) else (*leading, *row)

    return guess
