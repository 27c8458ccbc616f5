"""Which other files an ONNX file names: a graph may keep its weights beside itself.

Weights are skipped, not copied: see `core.protobuf_fields`.
"""

from tidegate.core.protobuf_fields import LENGTH, read_fields

# Field numbers of onnx.proto. Only messages that can hold a tensor are followed: kind -> field -> kind.
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, FUNCTION, TRAINING, ENTRY = range(9)
INSIDE = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    TENSOR: {13: ENTRY},
    SPARSE: {1: TENSOR, 2: TENSOR},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    TRAINING: {1: GRAPH, 2: GRAPH},
}
ENTRY_KEY, ENTRY_VALUE = 1, 2
LOCATION = b"location"


def external_files(graph: bytes | memoryview) -> list[str]:
    """The files that the tensors of an ONNX file name, each once, as they are written there.

    Raises ValueError when it is no ONNX file. What this cannot read, onnxruntime must not read either: it might find
    files there.
    """
    found: dict[str, None] = {}
    waiting = [(MODEL, 0, len(graph))]  # a stack of messages: graphs may hold graphs
    while waiting:
        kind, start, end = waiting.pop()
        if kind == ENTRY:
            parts = read_fields(graph, start, end)
            entry = {field: bytes(graph[first:last]) for field, wire, _, first, last in parts if wire == LENGTH}
            if entry.get(ENTRY_KEY) == LOCATION:
                found[entry.get(ENTRY_VALUE, b"").decode("utf-8", "replace")] = None
            continue
        inside = INSIDE[kind]
        for field, wire, _, first, last in read_fields(graph, start, end):
            if wire == LENGTH and field in inside:
                waiting.append((inside[field], first, last))
    return list(found)
