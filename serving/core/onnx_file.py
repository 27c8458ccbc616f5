"""Reads what an ONNX file says about itself: tensors, operators and metadata; no weights.

onnxruntime names the inputs and outputs of a graph but not its operators, and it loads the whole model first. This
reader takes only what it needs of the protobuf messages of `onnx.proto3`, and steps over all weights. The file is not
trusted: every length is checked, and depth and number of fields are bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.core.protobuf_fields import read_fields

# Element types of `TensorProto.DataType`, as numpy writes them.
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}

# Real graphs nest a few `If` and `Loop` in each other.
DEPTH_MAX = 32
# About two microseconds each: an unreadable file is given up after some seconds. A large graph has some 100,000.
FIELDS_MAX = 4_000_000
# Attributes that are text are names, such as a direction; longer ones are code or data.
TEXT_MAX = 64


class NotOnnx(ValueError):
    """The bytes are no ONNX file, or one that is too large to read."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """An input or output of a graph. An open dimension is its name, or "" where it has none."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """An operator: its type, and the names of the tensors that it reads and writes ("" for one that is left out).

    `graphs` are its bodies, and `attributes` those of its attributes that are an integer or a short text.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graphs: tuple["Graph", ...]
    attributes: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph, or the body of an operator such as `If` or `Loop`. `initializers` are the names of its weights."""

    nodes: tuple[Node, ...]
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    initializers: frozenset[str]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The content of a file."""

    graph: Graph
    producer: str
    metadata: dict[str, str]


def read_onnx(data: bytes | memoryview) -> OnnxFile:
    """Reads an ONNX file. Inputs that are also weights are left out, as onnxruntime does.

    Raises NotOnnx.
    """
    reader = _Reader(memoryview(data))
    try:
        return reader.model()
    except UnicodeDecodeError:
        raise NotOnnx("a name in it is not UTF-8") from None


@dataclass(slots=True)
class _Reader:
    data: memoryview
    fields: int = 0

    def model(self) -> OnnxFile:
        graph = None
        producer, metadata, ir_version = "", {}, 0
        for number, value, at, end in self._fields(0, len(self.data)):
            if number == 1:
                ir_version = value
            elif number == 2:
                producer = self._text(at, end)
            elif number == 7:
                graph = self._graph(at, end, 0)
            elif number == 14:
                key, content = self._pair(at, end)
                metadata[key] = content
        if graph is None or not ir_version or not graph.outputs:
            raise NotOnnx("it holds no graph")
        return OnnxFile(graph, producer, metadata)

    def _graph(self, at: int, end: int, depth: int) -> Graph:
        if depth > DEPTH_MAX:
            raise NotOnnx(f"its graphs are nested more than {DEPTH_MAX} deep")
        nodes, inputs, outputs, initializers = [], [], [], set()
        for number, _, start, stop in self._fields(at, end):
            if number == 1:
                nodes.append(self._node(start, stop, depth))
            elif number == 5:
                initializers.add(self._tensor(start, stop))
            elif number == 11:
                inputs.append(self._value_info(start, stop))
            elif number == 12:
                outputs.append(self._value_info(start, stop))
            elif number == 15:  # a sparse tensor; its first field is the tensor of its values, which has the name
                initializers |= {self._tensor(a, b) for part, _, a, b in self._fields(start, stop) if part == 1}
        given = tuple(tensor for tensor in inputs if tensor.name not in initializers)
        return Graph(tuple(nodes), given, tuple(outputs), frozenset(initializers))

    def _node(self, at: int, end: int, depth: int) -> Node:
        op, inputs, outputs = "", [], []
        graphs: list[Graph] = []
        attributes: dict[str, int | str] = {}
        for number, _, start, stop in self._fields(at, end):
            if number == 1:
                inputs.append(self._text(start, stop))
            elif number == 2:
                outputs.append(self._text(start, stop))
            elif number == 4:
                op = self._text(start, stop)
            elif number == 5:
                self._attribute(start, stop, depth, graphs, attributes)
        return Node(op, tuple(inputs), tuple(outputs), tuple(graphs), attributes)

    def _attribute(self, at: int, end: int, depth: int, graphs: list[Graph], attributes: dict[str, int | str]) -> None:
        name = ""
        for number, value, start, stop in self._fields(at, end):
            if number == 1:
                name = self._text(start, stop)
            elif number == 3:
                attributes[name] = value
            elif number == 4 and stop - start <= TEXT_MAX:
                attributes[name] = str(self.data[start:stop], "utf-8", "replace")  # any bytes are allowed here
            elif number in {6, 11}:  # g, graphs
                graphs.append(self._graph(start, stop, depth + 1))

    def _tensor(self, at: int, end: int) -> str:
        """The name of a tensor."""
        return next((self._text(start, stop) for number, _, start, stop in self._fields(at, end) if number == 8), "")

    def _value_info(self, at: int, end: int) -> FileTensor:
        name, dtype = "", ""
        dims: tuple[int | str, ...] = ()
        for number, _, start, stop in self._fields(at, end):
            if number == 1:
                name = self._text(start, stop)
            elif number == 2:
                for kind, _, first, last in self._fields(start, stop):
                    if kind == 1:  # tensor_type; sequences and maps have no element type here
                        dtype, dims = self._tensor_type(first, last)
        return FileTensor(name, dtype, dims)

    def _tensor_type(self, at: int, end: int) -> tuple[str, tuple[int | str, ...]]:
        dtype, dims = "", []
        for number, value, start, stop in self._fields(at, end):
            if number == 1:
                dtype = ELEMENT_TYPES.get(value, f"type {value}")
            elif number == 2:
                dims = [self._dim(first, last) for part, _, first, last in self._fields(start, stop) if part == 1]
        return dtype, tuple(dims)

    def _dim(self, at: int, end: int) -> int | str:
        size: int | str = ""
        for number, value, start, stop in self._fields(at, end):
            if number == 1:
                # Some exporters write -1 or 0 for an open dimension.
                size = value if 0 < value < 2**63 else ""
            elif number == 2:
                size = self._text(start, stop)
        return size

    def _pair(self, at: int, end: int) -> tuple[str, str]:
        parts = {
            number: self._text(start, stop) for number, _, start, stop in self._fields(at, end) if number in {1, 2}
        }
        return parts.get(1, ""), parts.get(2, "")

    def _text(self, at: int, end: int) -> str:
        return str(self.data[at:end], "utf-8")

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """The fields of a message: number, value of a varint, and where its bytes begin and end."""
        try:
            for number, _, value, start, stop in read_fields(self.data, at, end):
                self.fields += 1
                if self.fields > FIELDS_MAX:
                    break
                yield number, value, start, stop
        except ValueError as error:
            raise NotOnnx(str(error)) from None
        if self.fields > FIELDS_MAX:
            raise NotOnnx(f"it has more than {FIELDS_MAX:,} fields")
