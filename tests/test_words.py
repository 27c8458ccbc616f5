"""Identifiers use the words of gRPC, asyncio and time series, not coined ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Words that older versions coined, and the standard word for each.
COINED = {
    "books": "state",
    "crew": "processes",
    "desk": "backend",
    "heard": "received, outcome",
    "ledger": "state",
    "nobody": "none, unused",
    "parcel": "batch",
    "patience": "timeout",
    "roster": "registry",
    "said": "message, output",
    "shortage": "retry_deadline",
    "somebody": "caller, client",
    "speech": "encoding",
    "tally": "counts",
    "tidings": "notifications",
    "told": "notified, reported",
    "whoever": "caller, client",
}
FILES = sorted(path for room in ("serving", "examples") for path in (ROOT / room).rglob("*.py"))


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file defines or uses, with its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name, getattr(node, "lineno", 0)


def words(identifier: str) -> list[str]:
    """The words of an identifier in snake case or camel case, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("_retry_after_s", ["retry", "after", "s"]),
        ("RetryDeadlines", ["retry", "deadlines"]),
        ("IDsTold", ["i", "ds", "told"]),
    ],
)
def test_identifiers_are_split_into_words(identifier: str, parts: list[str]) -> None:
    """At underscores and at capital letters."""
    assert words(identifier) == parts


def test_no_identifier_has_a_coined_word() -> None:
    """The message names the file, the identifier and a standard word."""
    assert len(FILES) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}; use {COINED[word]}"
        for path in FILES
        for name, line in identifiers(ast.parse(path.read_text("utf-8")))
        for word in words(name)
        if word in COINED
    ]
    assert not found, "\n".join(found)
