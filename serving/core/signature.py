"""Checks the inputs and outputs of a graph against its description. The result is the `Spec` of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.core.description import METADATA_KEY, DescribedState, Dimension, read_description
from tidegate.core.errors import ContractBroken
from tidegate.core.spec import Feature, Output, Spec, StateTensor

DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


class _Tensors:
    """The inputs or the outputs of a graph. Each is taken once, as the description names it."""

    def __init__(self, where: str, kind: str, tensors: Sequence[Any]) -> None:
        self._where = where
        self._kind = kind
        self._left = {tensor.name: tensor for tensor in tensors}

    def take(self, name: str, shape: tuple[Dimension, ...]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """Checks a tensor against its description. Returns its dtype, its shape for one stream, and its batch axis."""
        if name not in self._left:
            raise self._broken(f"'{name}' is not in the graph, expected one of {', '.join(self._left) or 'none'}")
        tensor = self._left.pop(name)
        # A symbolic dimension has any name, or none; the contract calls it "batch".
        got = tuple("batch" if not isinstance(size, int) else size for size in tensor.shape)
        if got != shape:
            raise self._broken(f"'{name}' has shape {format_shape(got)}, expected {format_shape(shape)}")
        if shape.count("batch") != 1:
            raise self._broken(
                f"'{name}' has shape {format_shape(shape)}, expected exactly one dimension to be the batch"
            )
        if tensor.type not in DTYPES:
            raise self._broken(f"'{name}' is {tensor.type}, expected one of {', '.join(DTYPES)}")
        return DTYPES[tensor.type], tuple(size for size in shape if size != "batch"), shape.index("batch")

    def done(self) -> None:
        """Checks that the description names every tensor."""
        if self._left:
            raise self._broken(f"{', '.join(self._left)} is in the graph, but its description does not mention it")

    def _broken(self, message: str) -> ContractBroken:
        return ContractBroken(self._where, f"{self._kind} {message}")


def read_spec(name: str, version: str, fingerprint: str, session: Any, sidecar: str | None) -> Spec:
    """Reads the description of a loaded graph and checks the graph against it.

    `session` is an onnxruntime session. Raises ContractBroken where they do not match.
    """
    where = f"{name}/{version}"
    described = read_description(where, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), sidecar)
    inputs = _Tensors(where, "input", session.get_inputs())
    outputs = _Tensors(where, "output", session.get_outputs())
    x_type, _, _ = inputs.take(described.input, ("batch", len(described.features)))
    if x_type != np.float32:
        raise ContractBroken(where, f"input '{described.input}' is {x_type}, expected float32")
    state = tuple(_read_state(where, part, inputs, outputs) for part in described.state)
    predictions = []
    for part in described.outputs:
        dtype, row, batch_axis = outputs.take(part.name, part.shape)
        if batch_axis != 0:
            raise ContractBroken(
                where, f"output '{part.name}' has shape {format_shape(part.shape)}, expected the batch first"
            )
        predictions.append(Output(part.name, dtype, row, part.targets, part.units, part.horizons, part.quantiles))
    inputs.done()
    outputs.done()
    return Spec(
        name=name,
        version=version,
        fingerprint=fingerprint,
        task=described.task,
        period_s=described.period_s,
        input=described.input,
        handles_missing=described.handles_missing,
        features=tuple(Feature(part.name, part.unit, part.low, part.high) for part in described.features),
        outputs=tuple(predictions),
        state=state,
    )


def _read_state(where: str, part: DescribedState, inputs: _Tensors, outputs: _Tensors) -> StateTensor:
    dtype, row, batch_axis = inputs.take(part.name, part.shape)
    next_dtype, _, _ = outputs.take(part.next, part.shape)
    if next_dtype != dtype:
        raise ContractBroken(where, f"output '{part.next}' is {next_dtype}, expected {dtype} like state '{part.name}'")
    if not isinstance(part.initial, tuple):
        initial = np.full(row, part.initial, dtype)
    elif len(part.initial) == np.prod(row):
        initial = np.array(part.initial, dtype).reshape(row)
    else:
        raise ContractBroken(
            where,
            f"state '{part.name}' has {len(part.initial)} initial values, expected {np.prod(row)} for {format_shape(row)}",
        )
    return StateTensor(part.name, part.next, dtype, row, batch_axis, initial)


def format_shape(shape: Sequence[object]) -> str:
    """A shape as messages write it."""
    return "[" + ", ".join(str(size) for size in shape) + "]"
