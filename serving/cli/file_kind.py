"""What a file is that is no CSV in UTF-8: told by its first bytes, so that a person knows what to do with it."""

# First bytes of the kinds that training reads, and of what people have beside them.
_MAGIC = (
    (b"PK\x03\x04", "a spreadsheet or a zip file"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Feather"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x1f\x8b", "packed with gzip"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (b"\xfd7zXZ", "packed with xz"),
    (b"BZh", "packed with bzip2"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)


def other_kind(head: bytes) -> str:
    """What a file is, from its first bytes; empty if they may be those of a CSV file."""
    named = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")
    return named or ("JSON" if head.lstrip()[:1] in (b"{", b"[") else "")
