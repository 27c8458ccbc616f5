"""Numbers as protobuf encodes them: seven bits in each byte, lowest first; the eighth bit tells that more bytes follow."""

ONE_BYTE_VARINTS = tuple(bytes([digit]) for digit in range(0x80))


def varint(number: int) -> bytes:
    """A number that is not negative, as a varint."""
    if number < 0x80:
        return ONE_BYTE_VARINTS[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + varint(number >> 14)


def short_varint_value(digits: int) -> int:
    """The number of a varint of at most four bytes, which are given as a little-endian number."""
    return digits & 0x7F | digits >> 1 & 0x3F80 | digits >> 2 & 0x1FC000 | digits >> 3 & 0xFE00000


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, of text or of a message, with its tag and length."""
    return varint(number << 3 | 2) + varint(len(content)) + content
