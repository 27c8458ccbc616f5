"""Reads the fields of protobuf messages by hand: serving needs a few of an ONNX file, and must step over its weights.

Nothing is copied, so a mapped file of gigabytes costs no memory. The bytes are not trusted: every length is checked.
What protobuf refuses, this refuses too, for nobody may find something in a file that this has not seen.
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
VARINT_BYTES_MAX = 10
TAG_MAX = 2**32 - 1  # protobuf cuts a larger one


def read_fields(data: bytes | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message that is data[at:end]. Raises ValueError when it is no message.

    Of each: its number, its wire type, its value if it is a varint, and where its bytes begin and end.
    """
    while at < end:
        tag, start = _varint(data, at, end)
        number, kind, value = tag >> 3, tag & 7, 0
        if tag > TAG_MAX:
            raise ValueError("it has a field with a number beyond 32 bits")
        if not number:
            raise ValueError("it has a field without a number")
        if kind == VARINT:
            value, at = _varint(data, start, end)
        elif kind == LENGTH:
            length, start = _varint(data, start, end)
            at = start + length
        elif kind in (FIXED32, FIXED64):
            at = start + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError(f"it has a field of the wire type {kind}, which no ONNX file has")
        if at > end:
            raise ValueError("it is cut short: it ends in the middle of a message")
        yield number, kind, value, start, at


def _varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """A number of protobuf, and where the next one begins."""
    number = 0
    for place in range(at, min(at + VARINT_BYTES_MAX, end)):
        byte = data[place]
        number |= (byte & 0x7F) << (7 * (place - at))
        if byte < 0x80:
            return number, place + 1
    raise ValueError("it is cut short, or has a number that does not end")
