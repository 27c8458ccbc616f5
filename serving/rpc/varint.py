"""Varints: protobuf's encoding of numbers and lengths."""

ONE_BYTE = tuple(bytes([digit]) for digit in range(0x80))


def varint(number: int) -> bytes:
    """A number that is not negative: seven bits in each byte, lowest first; the eighth bit tells that more follow."""
    if number < 0x80:
        return ONE_BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + varint(number >> 14)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, of text or of a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content
