"""Which names a stream may have."""

import unicodedata
from collections.abc import Mapping

from tidegate.core.errors import InvalidField

# Long enough for any path-like name, short enough for a key in every store.
STREAM_ID_BYTES_MAX = 256
# Invisible characters, and those that change how the text around them looks: names appear in logs, tables and URLs.
REFUSED: Mapping[str, str] = {
    "Cc": "a control character",
    "Cf": "an invisible format character",
    "Cn": "not assigned by Unicode",
    "Cs": "half of a surrogate pair",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


def check_stream_id(stream_id: str, field: str = "stream_id") -> None:
    """Checks a name.

    Raises:
        InvalidField: no stream can have this name; an empty name is refused too. `field` is its name in the request.

    """
    size = len(stream_id.encode(errors="surrogatepass"))
    if not 0 < size <= STREAM_ID_BYTES_MAX:
        raise InvalidField(field, f"got {size} bytes, expected 1 to {STREAM_ID_BYTES_MAX}")
    if stream_id.isprintable():  # nearly all are; others may still be a wide space or of private use
        return
    for position, character in enumerate(stream_id, 1):
        if (category := REFUSED.get(unicodedata.category(character))) is not None:
            raise InvalidField(
                field,
                f"got {stream_id!r}, whose character {position} is U+{ord(character):04X}, {category}; "
                "expected characters that can be seen",
            )
