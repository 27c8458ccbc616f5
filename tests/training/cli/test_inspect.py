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
    printed = capsys.readouterr().out
    assert "plant.csv: 60 rows of 1 features, 2024-03-01T00:00:00 to 2024-03-05T14:00:00, a row every 10 min" in printed
    assert "601 rows are absent, in 2 gaps; 1 of them became missing values, 1 gap cuts the series" in printed
    assert "state (text" in printed
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


def test_a_column_that_cannot_be_used_is_marked_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what is wrong and the option that mends it; the exit code says that a training would refuse the file."""
    lines = rows([f"{row % 7}.5" for row in range(60)])
    text = [f"{line},{123456789 + row},{'oops' if row == 9 else row}" for row, line in enumerate(lines[1:])]
    with pytest.raises(SystemExit) as ended:
        inspected(tmp_path, [f"{lines[0]},meter,level", *text], "--units", "meter=kWh")
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err == "error: columns that cannot be used as they are: meter, level; the table says what to do\n"
    flow, *marked = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["columns"]
    assert (flow["name"], flow["low"], flow["high"], flow["usable"]) == ("flow", 0.5, 6.5, True)
    level, meter = sorted(marked, key=lambda column: column["name"])
    assert (meter["unit"], meter["low"], meter["usable"], level["usable"]) == ("kWh", None, False, False)
    assert "float32 cannot hold" in meter["remarks"][0]
    assert "--offset meter=123456789" in meter["remarks"][0]
    assert "holds 'oops' in row 10" in level["remarks"][0]
    assert "not usable" in printed.out
    assert "--offset" in printed.out


def test_a_file_without_a_usable_column_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to show: its error is the one line."""
    with pytest.raises(SystemExit):
        inspected(tmp_path, rows([str(123456789 + row) for row in range(60)]))
    printed = capsys.readouterr()
    assert "--offset flow=123456789" in printed.err
    assert not printed.out


def test_an_empty_column_that_is_asked_for_is_shown(tmp_path: Path) -> None:
    """Without a range."""
    lines = rows([str(row % 7) for row in range(60)])
    found = inspected(tmp_path, [f"{lines[0]},spare", *(f"{line}," for line in lines[1:])], "--columns", "flow,spare")
    spare = found["columns"][1]
    assert (spare["name"], spare["kind"], spare["missing"], spare["low"]) == ("spare", "empty", 1.0, None)


def test_categories_that_are_left_out_are_not_read(tmp_path: Path) -> None:
    """The same options serve all files of a plant, and an excluded column has no words to number."""
    lines = rows([str(row % 7) for row in range(60)])
    content = [f"{lines[0]},state", *(f"{line},on" for line in lines[1:])]
    found = inspected(tmp_path, content, "--categories", "state", "--exclude", "state")
    assert [column["name"] for column in found["columns"]] == ["flow"]
