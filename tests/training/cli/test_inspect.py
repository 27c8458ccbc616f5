"""`tidegate inspect`: what a table holds, without a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidegate.training.cli.app import main


def inspected(tmp_path: Path, lines: list[str], *options: str) -> dict[str, Any]:
    """The JSON of an inspection of a CSV file."""
    (tmp_path / "plant.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    main(["inspect", str(tmp_path / "plant.csv"), "--json", str(tmp_path / "out.json"), *options])
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))


def rows(values: list[str], minutes: list[int] | None = None) -> list[str]:
    """A table of one column, a row every ten minutes or at these minutes."""
    places = minutes or [10 * row for row in range(len(values))]
    start = np.datetime64("2024-03-01T00:00:00")
    return ["time,flow", *(f"{start + place * 60},{value}" for place, value in zip(places, values, strict=True))]


def test_columns_range_period_and_gaps_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As sentences, as a table, and as JSON for programs."""
    minutes = [10 * row + 10 * (row > 10) + 6000 * (row > 30) for row in range(60)]
    lines = [f"{line},ok" for line in rows([f"{row % 7}.5" for row in range(60)], minutes)]
    found = inspected(tmp_path, ["time,flow,state", *lines[1:]], "--units", "flow=l/s")
    told = capsys.readouterr().out
    assert "plant.csv: 60 rows of 1 features, 2024-03-01T00:00:00 to 2024-03-05T14:00:00, a row every 10 min" in told
    assert "601 rows are absent, in 2 gaps; 1 of them became missing values, 1 gap cuts the series" in told
    assert "state (text" in told
    (column,) = found["columns"]
    assert (column["name"], column["unit"], column["kind"]) == ("flow", "l/s", "numbers")
    assert (column["low"], column["high"], column["missing"]) == (0.5, 6.5, 0.0)
    assert found["gaps"] == [
        {"start": "2024-03-01T05:10:00", "end": "2024-03-05T09:20:00", "seconds": 360_600.0, "group": ""}
    ]


def test_a_stuck_sensor_is_told(tmp_path: Path) -> None:
    """With the value, how long it lasts, and since when."""
    values = [str(row % 9) for row in range(400)]
    values[100:250] = ["4"] * 150
    (column,) = inspected(tmp_path, rows(values))["columns"]
    assert column["remarks"] == ["stuck at 4 for 150 rows from 2024-03-01T16:40:00"]


def test_values_far_from_the_others_are_told(tmp_path: Path) -> None:
    """With the farthest and its time; a single one is no sentinel, but a fault."""
    values = [str(row % 9) for row in range(400)]
    values[7] = "5000"
    (column,) = inspected(tmp_path, rows(values))["columns"]
    assert column["remarks"] == ["1 values far from the others, such as 5000 at 2024-03-01T01:10:00"]


def test_a_likely_sentinel_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the option that makes it missing."""
    inspected(tmp_path, rows([str(-9999 if row % 10 == 0 else row % 9) for row in range(200)]))
    assert "--missing-values flow=-9999" in capsys.readouterr().out
