"""The way of a table with groups through a whole training: split, made features, card, held-out rows, and judging."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tidegate.cli.sensor_table import read_table
from tidegate.training import errors, pipeline, published
from tidegate.training.data import datasets
from tidegate.training.data.load import read
from tidegate.training.data.series import Group, Series
from tidegate.training.data.source import derived_features, read_source, source_like
from tidegate.training.data.write import write_csv
from tidegate.training.judging.evaluate import Graph
from tidegate.training.settings import Fit, Request, Shape, Source

MADE = ("s1@+1", "s1@+3", "day_sin", "day_cos", "elapsed_s")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A folder with a table of the same hundred hours at six sites, one with a gap, and its training split by site."""
    folder = tmp_path_factory.mktemp("sources")
    groups = tuple(Group(f"site{place}", 100 * place, 100 * (place + 1)) for place in range(6))
    series = make_series(600, missing=0.02)
    times = np.tile(series.times[:100], 6)
    times[150:200] += np.timedelta64(100, "h")
    series = replace(series, times=times, groups=groups, group_column="site")
    write_csv(series, folder / "sites.csv", series.spans)
    pipeline.train(request(folder), lambda *_: None, lambda _: None)
    return folder


def request(folder: Path, **changes: object) -> Request:
    """A small training on the table; `changes` are to the source."""
    source = {
        "data": str(folder / "sites.csv"),
        "group": "site",
        "split_by": "site",
        "known": ("s1",),
        "calendar": ("day",),
        "elapsed": True,
    }
    return Request(
        source=Source.model_validate(source | changes),
        target=("s0",),
        horizons=(1, 3),
        links=("last",),
        follow=False,
        shape=Shape(hidden=8, level="off"),
        fit=Fit(epochs=3, chunk=16, burn_in=4),
        hold_out=("site4", "site1"),
        models=folder / "models",
        name="sites",
        out=folder / "run",
        held_out=folder / "held-out.csv",
    )


def refused(folder: Path, words: str, **changes: object) -> None:
    """A training that must end before anything is learned."""
    with pytest.raises(errors.TrainingError, match=words):
        pipeline.train(
            request(folder, **changes).model_copy(update={"out": folder / "other"}), lambda *_: None, lambda _: None
        )


def test_the_card_lists_what_was_held_out(work: Path) -> None:
    """The sites by name, and their rows; no site is in two parts."""
    data = json.loads((work / "models/sites/1/card.json").read_text(encoding="utf-8"))["data"]
    assert data["held_out"]["wholes"] == ["site1", "site4"]
    assert data["held_out"]["spans"] == [[100, 200], [400, 500]]
    sites = [site for part in ("training", "validation", "held_out") for site in data[part]["wholes"]]
    assert sorted(sites) == [f"site{place}" for place in range(6)]


def test_made_features_are_inputs_of_the_graph(work: Path) -> None:
    """A client sends them as any other feature, and is told which of them is in seconds."""
    graph = Graph.load(work / "models/sites/1")
    assert graph.features == ["s0", "s1", "s2", *MADE]
    assert [feature["unit"] for feature in graph.description["features"]] == [""] * 7 + ["s"]


def test_the_held_out_rows_can_be_streamed(work: Path) -> None:
    """The file has every feature of the model, and the client reads the bits that were scored."""
    graph = Graph.load(work / "models/sites/1")
    table = read_table(work / "held-out.csv", graph.features)
    series = read_source(request(work).source, MADE)
    np.testing.assert_array_equal(table.values, series.values[[*range(100, 200), *range(400, 500)]])
    assert table.label == "time"


def test_the_held_out_rows_score_as_they_did(work: Path) -> None:
    """As a table of its own, with its groups found through the card; and through the card alone."""
    promised = json.loads((work / "models/sites/1/card.json").read_text(encoding="utf-8"))["scores"]["table"]
    model = work / "models/sites/1"
    for data in (str(work / "held-out.csv"), None):
        scores = published.evaluate_version(model, data=data, time=None, season=None)
        assert [score["model"] for score in json.loads(json.dumps(scores.as_json()))["table"]] == [
            score["model"] for score in promised
        ]


def test_other_data_needs_no_made_features(work: Path, tmp_path: Path) -> None:
    """What the model wants to know of calendar, future and time is made from the columns that are there."""
    plain = read(work / "sites.csv", group="site")
    write_csv(plain, tmp_path / "new.csv", ((400, 500),))
    scores = published.evaluate_version(work / "models/sites/1", data=str(tmp_path / "new.csv"), time=None, season=None)
    assert scores.rows == 100


def test_a_run_is_exported_with_its_made_features(work: Path) -> None:
    """The run folder knows which they were."""
    again = pipeline.export_run(work / "run", work / "again", data=None, name="sites", version=None, season=None)
    promised = json.loads((work / "models/sites/1/card.json").read_text(encoding="utf-8"))["scores"]
    assert json.loads(json.dumps(again.scores.as_json())) == promised


def test_the_future_of_a_target_is_refused(work: Path) -> None:
    """It is the answer."""
    refused(work, "known: 's0' is a target as well", known=("s0",))


def test_holding_out_needs_a_column(work: Path) -> None:
    """Split by time, there are no values to hold out."""
    refused(work, "hold-out: got site4, site1 but the data is split by time.*--split-by", split_by=None)


def test_choosing_by_name_needs_a_column(work: Path) -> None:
    """Split by time, there are no values to choose by: the names are not passed over in silence."""
    parts = {"hold_out": (), "validate_on": ("site2",), "out": work / "chosen"}
    with pytest.raises(errors.SettingsError, match="validate-on: got site2 but the data is split by time"):
        pipeline.train(request(work, split_by=None).model_copy(update=parts), lambda *_: None, lambda _: None)


def test_a_class_has_no_future(work: Path) -> None:
    """Without horizons there is nothing to look ahead by."""
    with pytest.raises(errors.SettingsError, match="known: a class has no horizons"):
        derived_features(request(work).source, "classify", (1,))


def test_a_made_feature_is_no_target(work: Path) -> None:
    """Whoever knows the time knows it."""
    wrong = request(work).model_copy(update={"target": ("day_sin",), "out": work / "other"})
    with pytest.raises(errors.SettingsError, match="target: 'day_sin' is derived"):
        pipeline.train(wrong, lambda *_: None, lambda _: None)


def test_other_data_of_a_named_set_has_its_groups(tmp_path: Path) -> None:
    """A part that was written has the set's columns, which the card does not repeat; what it lacks is not asked for."""
    (tmp_path / "part.csv").write_text("time,origin,temp\n2024-01-01,JFK,1\n2024-01-02,JFK,2\n", encoding="utf-8")
    other = source_like(Source(data=str(tmp_path / "part.csv")), {"source": {"data": "weather"}})
    assert (other.group, other.label) == ("origin", None)
    unlike = source_like(Source(data=str(tmp_path / "part.csv")), {"source": {"data": "watch"}})
    assert (unlike.group, unlike.label) == (None, None)


def test_named_sets_know_their_groups() -> None:
    """Recordings of persons with an exercise each; none of these columns is a feature, whether it is used or not."""
    try:
        datasets.fetch("watch")
    except errors.DatasetUnavailable as error:
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"needs the data set watch, which cannot be fetched here: {error}")
    series = read_source(Source(data="watch"))
    assert (len(series.groups), len({group.split_key for group in series.groups}), len(series.classes)) == (140, 10, 7)
    assert series.names == ("ax", "ay", "az", "wx", "wy", "wz")
    plain = read_source(Source(data="watch", label="", split_by=""))
    assert (plain.labels, plain.names, plain.groups[0].split_key) == (None, series.names, "")
