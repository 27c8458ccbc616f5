"""The tensors of a model, as this protocol describes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tidegate.core.spec import Input, Output, Spec


class DataType(NamedTuple):
    """A type: its name, its number in a model's configuration, and the field of typed contents, if there is one."""

    name: str
    number: int
    contents: str


DATA_TYPES: Mapping[np.dtype[Any], DataType] = {
    np.dtype(np.bool_): DataType("BOOL", 1, "bool_contents"),
    np.dtype(np.uint8): DataType("UINT8", 2, "uint_contents"),
    np.dtype(np.uint16): DataType("UINT16", 3, "uint_contents"),
    np.dtype(np.uint32): DataType("UINT32", 4, "uint_contents"),
    np.dtype(np.uint64): DataType("UINT64", 5, "uint64_contents"),
    np.dtype(np.int8): DataType("INT8", 6, "int_contents"),
    np.dtype(np.int16): DataType("INT16", 7, "int_contents"),
    np.dtype(np.int32): DataType("INT32", 8, "int_contents"),
    np.dtype(np.int64): DataType("INT64", 9, "int64_contents"),
    np.dtype(np.float16): DataType("FP16", 10, ""),
    np.dtype(np.float32): DataType("FP32", 11, "fp32_contents"),
    np.dtype(np.float64): DataType("FP64", 12, "fp64_contents"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of one stream. `shape` is without the batch dimension, `nbytes` its size in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def data_type(self) -> DataType:
        """Its type in this protocol."""
        return DATA_TYPES[self.dtype]

    @property
    def request_shape(self) -> list[int]:
        """Its shape in a request or an answer: a batch of one."""
        return [1, *self.shape]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def timestep_tensors(spec: Spec) -> tuple[Tensor, ...]:
    """The inputs of a timestep, in the order of its row."""
    return tuple(_tensor(part) for part in spec.inputs if part.kind == "timestep")


def stream_tensors(spec: Spec) -> tuple[Tensor, ...]:
    """The inputs that a sequence begins with."""
    return tuple(map(_tensor, spec.stream_inputs))


def output_tensors(spec: Spec) -> tuple[Tensor, ...]:
    """The outputs of a prediction."""
    return tuple(map(_tensor, spec.outputs))


def _tensor(part: Input | Output) -> Tensor:
    return Tensor(part.name, part.dtype, part.shape)
