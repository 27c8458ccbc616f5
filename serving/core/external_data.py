"""Which other files an ONNX file names: a graph may keep its weights beside itself.

The protobuf messages are read by hand, for serving needs nothing else of them. Weights are skipped, not copied, so a
mapped file of gigabytes costs no memory.
"""

from collections.abc import Iterator

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
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
LOCATION = b"location"
VARINT_BYTES_MAX = 10
TAG_MAX = 2**32 - 1  # protobuf cuts a larger one


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
            entry = {field: bytes(graph[first:last]) for field, first, last in _fields(graph, start, end)}
            if entry.get(ENTRY_KEY) == LOCATION:
                found[entry.get(ENTRY_VALUE, b"").decode("utf-8", "replace")] = None
            continue
        inside = INSIDE[kind]
        for field, first, last in _fields(graph, start, end):
            if field in inside:
                waiting.append((inside[field], first, last))
    return list(found)


def _fields(graph: bytes | memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field with a length, and where its content is."""
    place = start
    while place < end:
        tag, place = _varint(graph, place, end)
        if tag > TAG_MAX:
            raise ValueError("it has a field with a number beyond 32 bits")
        kind = tag & 7
        if kind == LENGTH:
            size, place = _varint(graph, place, end)
            if size > end - place:
                raise ValueError("it ends in the middle of a message")
            yield tag >> 3, place, place + size
            place += size
        elif kind == VARINT:
            _, place = _varint(graph, place, end)
        elif kind in (FIXED32, FIXED64):
            place += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"it has a field of the wire type {kind}, which no ONNX file has")


def _varint(graph: bytes | memoryview, place: int, end: int) -> tuple[int, int]:
    """A number of protobuf, and where the next one begins."""
    number = 0
    for shift in range(VARINT_BYTES_MAX):
        if place + shift >= end:
            break
        byte = graph[place + shift]
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, place + shift + 1
    raise ValueError("it has a number that does not end")
