"""Decodes timesteps from the bytes of their requests.

A protobuf object for each costs as much as a row of the model. A request in any other layout than that of protobuf's
encoder, or with inputs by name, is left to protobuf.
"""

from collections.abc import Callable
from functools import cache

from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import Timestep
from tidegate.rpc.varint import short_varint_value, varint

# The longest step number that is decoded here, in bytes of a varint: enough for 268 million timesteps. Protobuf decodes
# longer ones. A varint has seven bits in each byte, lowest first; the eighth bit tells that more bytes follow.
VARINT_BYTES_MAX = 4
CONTINUATION_BITS = (0, 0, 0x80, 0x8080, 0x808080)
VALUE_BYTES = 4


class TimestepReader:
    """Decodes timesteps with a given number of features from the bytes of their requests.

    The length of a request determines how many bytes its step number has, and so where everything is. `read` checks
    this layout, and returns None for any other.
    """

    def __init__(self, features: int) -> None:
        width = 4 * features
        self._values = b"\x12" + varint(width)  # the tag and the length of the values
        # by length of the request: its first bytes, where the step begins, where it ends
        self._layouts: dict[int, tuple[bytes, int, int]] = {}
        for digits in range(VARINT_BYTES_MAX + 1):
            number = b"\x08" if digits else b""  # protobuf does not encode 0
            head = b"\x0a" + varint(len(number) + digits + len(self._values) + width) + number
            end = len(head) + digits
            self._layouts[end + len(self._values) + width] = head, len(head), end

    def read(self, message: bytes) -> Timestep | None:
        """The timestep in a request, None when protobuf must decode it."""
        layout = self._layouts.get(len(message))
        if layout is None:
            return None
        head, start, end = layout
        if not message.startswith(head) or not message.startswith(self._values, end):
            return None
        digits = int.from_bytes(message[start:end], "little")
        if digits & 0x80808080 != CONTINUATION_BITS[end - start]:
            return None
        step = short_varint_value(digits)
        return Timestep(step, message[end + len(self._values) :])


@cache
def timestep_reader(features: int) -> TimestepReader:
    """The reader for models with a given number of features. The cache has one entry for each width."""
    return TimestepReader(features)


def read_with(layout: InputLayout) -> Callable[[bytes], Timestep | None]:
    """Decodes timesteps of a model with that layout, as `TimestepReader.read` does."""
    if layout.plain:
        return timestep_reader(layout.row_bytes // VALUE_BYTES).read
    return lambda _: None  # by name, so protobuf decodes it
