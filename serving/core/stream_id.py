"""The names that a stream may have."""

import unicodedata
from collections.abc import Mapping

from serving.core.errors import InvalidField

# Long enough for any path-like name, short enough to be a key in every store.
STREAM_ID_BYTES_MAX = 256
# What cannot be seen, or makes the text around it look like another: a name is read in logs, tables and URLs.
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
        InvalidField: a stream cannot have it; empty is no name. `field` is what the request calls it.

    """
    size = len(stream_id.encode(errors="surrogatepass"))
    if not 0 < size <= STREAM_ID_BYTES_MAX:
        raise InvalidField(field, f"got {size} bytes, expected 1 to {STREAM_ID_BYTES_MAX}")
    if stream_id.isprintable():  # as nearly all are; what is not may still be a wide space or of private use
        return
    for place, character in enumerate(stream_id, 1):
        if (what := REFUSED.get(unicodedata.category(character))) is not None:
            raise InvalidField(
                field,
                f"got {stream_id!r}, whose character {place} is U+{ord(character):04X}, {what}; "
                "expected characters that can be seen",
            )
