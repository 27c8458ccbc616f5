"""Where the tensors of a graph come from and go to: what tells state from prediction when the names do not."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tidegate.core.onnx_file import Graph, Node

# These move numbers and do not change them. The first input has the numbers; of the last three every input has.
MOVING = {
    *("Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Gather", "Split"),
    *("Cast", "Expand", "Flatten", "Concat", "ScatterND", "Where"),
}
ALL_MOVED = {"Concat", "ScatterND", "Where"}
# These work number by number: a cell's gates let c through, while h passes through a matrix.
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Tanh", "Sigmoid", "Neg", "Max", "Min", "Clip", "Relu"}
# Recurrent operators: the inputs with h and c at the start are number 5 and 6, the outputs with the last ones 1 and 2.
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
LOOPS = {"Loop", "Scan"}
# What these put out depends on shapes and not on values.
SHAPE_ONLY = {"Shape", "Size", "ConstantOfShape"}


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator with names that are unique in the whole file. `optional` tells that it is inside an `If`."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    direction: str = ""
    optional: bool = False


class Dataflow:
    """The operators of a graph and of its bodies as one list, and the questions that can be asked of them."""

    def __init__(self, graph: Graph) -> None:
        self.operators: list[Operator] = []
        self._inputs = {tensor.name for tensor in graph.inputs}
        self._outputs = {tensor.name for tensor in graph.outputs}
        self._carried: dict[int, tuple[str, ...]] = {}  # by operator, what a loop begins with
        self._flatten(graph, {name: name for name in self._inputs}, "", optional=False)
        self._readers: dict[str, list[int]] = {}
        self._writers: dict[str, list[int]] = {}  # the result of an `If` has one for each branch
        for number, operator in enumerate(self.operators):
            for name in operator.inputs:
                self._readers.setdefault(name, []).append(number)
            for name in operator.outputs:
                self._writers.setdefault(name, []).append(number)

    @property
    def recurrent(self) -> list[int]:
        """The recurrent operators, and the loops that multiply matrices."""
        return [
            number
            for number, operator in enumerate(self.operators)
            if operator.op in RECURRENT or (operator.op in LOOPS and number in self._carried)
        ]

    def begins_with(self, name: str) -> set[tuple[int, int]]:
        """The recurrent operators that an input starts, each with 1 for h or 2 for c."""
        found = set()
        for reached in self._moved_from(name):
            for number in self._readers.get(reached, ()):
                operator = self.operators[number]
                if operator.op in RECURRENT:
                    found |= {
                        (number, place) for place in (1, 2) if operator.inputs[4 + place : 5 + place] == (reached,)
                    }
        return found

    def ends_with(self, name: str) -> set[tuple[int, int]]:
        """The recurrent operators whose last h (1) or c (2) is in an output."""
        found = set()
        for reached in self._moved_to(name):
            for number in self._writers.get(reached, ()):
                operator = self.operators[number]
                if operator.op in RECURRENT:
                    found |= {(number, place) for place in (1, 2) if operator.outputs[place : place + 1] == (reached,)}
        return found

    def elementwise_distances(self, name: str) -> dict[str, int]:
        """The outputs that an input reaches number by number, and over how many operators."""
        distances = {name: 0}
        waiting = deque([name])
        while waiting:
            here = waiting.popleft()
            for number in self._readers.get(here, ()):
                operator = self.operators[number]
                if operator.op in ELEMENTWISE or _moves(operator, here):
                    for output in operator.outputs:
                        if output and output not in distances:
                            distances[output] = distances[here] + 1
                            waiting.append(output)
        return {output: steps for output, steps in distances.items() if output in self._outputs and steps}

    def begins_anew(self) -> list[str]:
        """The type of each recurrent operator that starts from the same values in every call.

        Bidirectional ones are left out: they read a whole window, and nothing can be carried. So is one branch of an
        `If` where another branch starts from an input: exporters write such a branch for a call without state.
        """
        anew, carried = [], False
        for number in self.recurrent:
            operator = self.operators[number]
            if operator.direction not in {"bidirectional", "reverse"}:
                if self._depends_on_inputs(self._carried.get(number) or operator.inputs[5:7]):
                    carried = True
                else:
                    anew.append(operator)
        return [operator.op for operator in anew if not (carried and operator.optional)]

    def _depends_on_inputs(self, names: Iterable[str]) -> bool:
        def sources(name: str) -> Iterator[str]:
            for number in self._writers.get(name, ()):
                if self.operators[number].op not in SHAPE_ONLY:
                    yield from self.operators[number].inputs

        return not self._inputs.isdisjoint(_reach(names, sources))

    def _moved_from(self, name: str) -> set[str]:
        def outputs(name: str) -> Iterator[str]:
            for number in self._readers.get(name, ()):
                if _moves(self.operators[number], name):
                    yield from self.operators[number].outputs

        return _reach([name], outputs)

    def _moved_to(self, name: str) -> set[str]:
        def sources(name: str) -> Iterator[str]:
            for number in self._writers.get(name, ()):
                operator = self.operators[number]
                if operator.op in MOVING:
                    yield from operator.inputs if operator.op in ALL_MOVED else operator.inputs[:1]

        return _reach([name], sources)

    def _flatten(self, graph: Graph, names: dict[str, str], prefix: str, *, optional: bool) -> None:
        """Adds the operators of a graph. `names` are the names that it sees, and what they are called in the list."""
        names = names | {name: prefix + name for name in graph.initializers}
        for node in graph.nodes:
            inputs = tuple(names.get(name, prefix + name) if name else "" for name in node.inputs)
            outputs = tuple(prefix + name if name else "" for name in node.outputs)
            names |= {name: prefix + name for name in node.outputs}
            number = len(self.operators)
            direction = str(node.attributes.get("direction", ""))
            self.operators.append(Operator(node.op, inputs, outputs, direction, optional))
            for place, body in enumerate(node.graphs):
                inside = optional or node.op == "If"
                self._flatten_body(node, body, number, names, f"{prefix}{number}.{place}/", optional=inside)

    def _flatten_body(
        self, node: Node, body: Graph, number: int, names: dict[str, str], prefix: str, *, optional: bool
    ) -> None:
        """Adds the operators of a body, and joins its inputs and outputs to those of its operator."""
        operator = self.operators[number]
        given: tuple[str, ...] = ()
        if node.op == "Loop":  # inputs: turns, condition, carried; the body has a turn's number in place of the turns
            given = operator.inputs
            carried = operator.inputs[2:]
        else:
            given = operator.inputs if node.op == "Scan" else ()
            carried = operator.inputs[: len(body.inputs) - int(node.attributes.get("num_scan_inputs", 0))]
        inside = {tensor.name: prefix + tensor.name for tensor in body.inputs}
        for outer, tensor in zip(given, body.inputs, strict=False):
            self.operators.append(Operator("Identity", (outer,), (prefix + tensor.name,)))
        self._flatten(body, names | inside, prefix, optional=optional)
        results = body.outputs[1:] if node.op == "Loop" else body.outputs  # the first one of a loop is its condition
        written = {name for one in body.nodes for name in one.outputs}
        for tensor, outer in zip(results, operator.outputs, strict=False):
            source = prefix + tensor.name if tensor.name in written | inside.keys() else names.get(tensor.name, "")
            self.operators.append(Operator("Identity", (source,), (outer,)))
        if node.op in LOOPS and any(one.op in {"MatMul", "Gemm"} for one in body.nodes):
            self._carried[number] = carried


def _reach(names: Iterable[str], following: Callable[[str], Iterable[str]]) -> set[str]:
    """These names, and all that follow from them."""
    found, waiting = set(names), deque(names)
    while waiting:
        new = set(following(waiting.popleft())) - found
        found |= new
        waiting.extend(new)
    return found


def _moves(operator: Operator, name: str) -> bool:
    """Whether an operator moves the numbers of one of its inputs."""
    if operator.op not in MOVING:
        return False
    return operator.op in ALL_MOVED or operator.inputs[:1] == (name,)
