"""The way of a file as a spreadsheet writes it through a whole training: what is told, the card, the graph, and judging."""

import json
from pathlib import Path

import numpy as np
import pytest

from tidegate.training import pipeline, published
from tidegate.training.judging.graph import Graph
from tidegate.training.settings import Fit, Request, Shape, Source

STATES = ("aus", "ein", "störung")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a German file, its model, and `notes.json`: what was told."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "werk.csv", ";", ",", "latin-1")
    notes: list[str] = []
    pipeline.train(
        Request(
            source=Source(data=str(folder / "werk.csv"), categories=("Zustand",)),
            target=("Außen",),
            horizons=(1, 3),
            links=("last",),
            follow=False,
            shape=Shape(hidden=8, level="off"),
            fit=Fit(epochs=2, chunk=16, burn_in=4),
            models=folder / "models",
            name="werk",
            out=folder / "run",
            held_out=folder / "held-out.csv",
        ),
        lambda *_: None,
        notes.append,
    )
    (folder / "notes.json").write_text(json.dumps(notes), encoding="utf-8")
    return folder


def write(path: Path, between: str, decimal: str, encoding: str) -> None:
    """Six hundred rows: a wave, a state, and a column that moves for the first time in the held-out part."""
    rng, lines = np.random.default_rng(0), [between.join(["Zeit", "Außen", "Zustand", "spät"])]
    for row in range(600):
        value = f"{20 + 5 * np.sin(row / 20) + rng.normal(0, 0.3):.2f}".replace(".", decimal)
        time = (np.datetime64("2024-03-01T00:00") + 10 * row).item().strftime("%d.%m.%Y %H:%M")
        lines.append(between.join([time, value, STATES[row // 50 % 3], "0" if row < 550 else "101325"]))
    path.write_text("\n".join(lines), encoding=encoding)


def card(work: Path) -> dict[str, object]:
    """The card of the model."""
    return dict(json.loads((work / "models/werk/1/card.json").read_text(encoding="utf-8")))


def test_what_was_understood_is_told_before_the_training(work: Path) -> None:
    """One line about the file, one for its words, one for what is left out."""
    notes = json.loads((work / "notes.json").read_text(encoding="utf-8"))
    assert notes[:2] == [
        "werk.csv: `;` between columns, decimal comma, latin-1, time = 'Zeit' as day.month.year",
        "column 'Zustand': aus = 0, ein = 1, störung = 2",
    ]
    assert "left out, because they are constant in the training part: spät" in notes


def test_card_and_graph_list_the_words(work: Path) -> None:
    """A client finds the number of each word where it finds the features."""
    described = card(work)["description"]
    assert isinstance(described, dict)
    for features in (card(work)["features"], described["features"]):
        assert {feature["name"]: feature.get("categories") for feature in features} == {
            "Außen": None,
            "Zustand": list(STATES),
        }
    assert tuple(Graph.load(work / "models/werk/1").features) == ("Außen", "Zustand")


def test_the_model_scores_as_it_did(work: Path) -> None:
    """Through the card."""
    scores = published.evaluate_version(work / "models/werk/1", data=None, time=None, season=None)
    promised = card(work)["scores"]
    assert isinstance(promised, dict)
    got = json.loads(json.dumps(scores.as_json()))
    assert [score["model"] for score in got["table"]] == [score["model"] for score in promised["table"]]


def test_held_out_rows_are_scored_as_they_were_written(work: Path) -> None:
    """They have the numbers of the words. Without the rows before them the stream is new, and forecasts a little worse."""
    scores = published.evaluate_version(work / "models/werk/1", data=str(work / "held-out.csv"), time=None, season=None)
    promised = [row["model"]["mae"] for row in card(work)["scores"]["table"]]
    assert [score.model.mae for score in scores.table] == pytest.approx(promised, rel=0.1)


def test_other_data_may_be_written_otherwise(work: Path) -> None:
    """How a file is written is its own; what its words mean is the model's."""
    write(work / "other.csv", "|", ".", "utf-8")
    notes: list[str] = []
    scores = published.evaluate_version(
        work / "models/werk/1", data=str(work / "other.csv"), time=None, season=None, on_note=notes.append
    )
    # The same rows in another file: only those that the model has not learned from are scored, and just as well.
    assert (scores.rows, scores.left_out) == (90, 510)
    assert [score.model.mae for score in scores.table] == [row["model"]["mae"] for row in card(work)["scores"]["table"]]
    assert notes[0].startswith("other.csv: `|` between columns, time")
    assert "column 'Zustand': aus = 0, ein = 1, störung = 2" in notes


def test_a_run_is_exported_with_its_words(work: Path) -> None:
    """The run folder knows them, and which columns were left out."""
    again = pipeline.export_run(work / "run", work / "again", data=None, name="werk", version=None, season=None)
    assert json.loads(json.dumps(again.scores.as_json())) == card(work)["scores"]
