"""Cards of many targets and horizons are short, and nothing is lost."""

import json
from pathlib import Path

from tidegate.training.judging.scores import ColdStart, ColdStartErrors, Error, Quantile, Score, Scores
from tidegate.training.publishing.version import read_card, write_version

LONGEST_CARD = 200_000


def scores_of(targets: int, horizons: int) -> Scores:
    """Full rows, with numbers of all digits."""
    third = 1 / 3
    quantiles = tuple(Quantile(level, third, third) for level in (0.1, 0.5, 0.9))
    error = Error(third, third, third, third, third, third, quantiles)
    places = [(f"s{target}", horizon) for target in range(targets) for horizon in range(1, horizons + 1)]
    table = tuple(Score(target, "°C", horizon, third, 9, error, error, error, error) for target, horizon in places)
    cold = tuple(ColdStartErrors(target, horizon, (third,) * 8, (third,) * 8, None) for target, horizon in places)
    return Scores("wide", table=table, cold_start=ColdStart(9, tuple(range(8)), 0.1, cold))


def test_a_card_of_672_forecasts_is_short(tmp_path: Path) -> None:
    """It says how many rows it leaves out and where they are; whoever reads it by `read_card` has them all."""
    card = {"name": "wide", "scores": json.loads(json.dumps(scores_of(7, 96).as_json()))}
    folder = write_version(tmp_path, "wide", 1, b"", card, "")
    written = (folder / "card.json").read_bytes()
    assert len(written) < LONGEST_CARD
    table = json.loads(written)["scores"]
    assert (len(table["table"]), table["rows_left_out"], table["file"]) == (24, 648, "scores.json")
    assert {row["target"] for row in table["table"]} == {f"s{target}" for target in range(7)}
    assert (len(table["cold_start"]["table"]), table["cold_start"]["rows_left_out"]) == (24, 648)
    assert read_card(folder) == card


def test_a_card_of_few_forecasts_has_all_of_them(tmp_path: Path) -> None:
    """There is no other file."""
    card = {"name": "few", "scores": json.loads(json.dumps(scores_of(2, 4).as_json()))}
    folder = write_version(tmp_path, "few", 1, b"", card, "")
    assert json.loads((folder / "card.json").read_text("utf-8")) == card
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx", "report.html"]
