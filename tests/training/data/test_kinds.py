"""Every kind of file in docs/data.md is read rightly: values and times are compared with what was written."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.kinds import FILES, PLAIN, TIMES, VALUES, WANTED, WAYS_OF_TIMES, Kind
from tidegate.training.data.load import read
from tidegate.training.settings import Format

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
KINDS = {"files": FILES, "times": WAYS_OF_TIMES, "values": VALUES}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=row) for kinds in KINDS.values() for row, kind in kinds.items()]
)
def test_a_kind_of_file_is_read_rightly(tmp_path: Path, kind: Kind) -> None:
    """Names, units, times and values are those that were written, and the line says what was understood."""
    path = tmp_path / kind.name
    if isinstance(kind.content, bytes):
        path.write_bytes(kind.content)
    else:
        kind.content(path)
    series = read(path, options=Format.model_validate(kind.options), **kind.columns)
    assert series.names == kind.names
    np.testing.assert_array_equal(series.times, kind.times)
    np.testing.assert_array_equal(series.values, kind.values)
    assert series.units == kind.units
    assert kind.note in "\n".join(series.notes)


@pytest.mark.parametrize("what", KINDS)
def test_the_documentation_lists_these_kinds(what: str) -> None:
    """A row of a table in docs/data.md is a test, and a test is a row."""
    page = DOCS.read_text("utf-8")
    table = page[page.index(f"<!-- {what} -->") :].split("\n\n")[1]
    rows = [row.strip("| ").split(" | ")[0] for row in table.splitlines()[2:]]
    assert [re.sub(r"\s+", " ", row) for row in rows] == list(KINDS[what])


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads what is piped in."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PLAIN)))
    series = read(Path("-"))
    np.testing.assert_array_equal(series.values, WANTED)
    np.testing.assert_array_equal(series.times, TIMES)
