"""`train` with a data frame: what comes out is what the command line would write, and can be used at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tidegate.training import Training, errors, train
from tidegate.training.judging.advice import next_step
from tidegate.training.judging.graph import Graph
from tidegate.training.published import evaluate_version

# A small graph, as in `light`: it is not what is tested here.
QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "lanes": 8, "horizons": (1, 6), "level": "off", "follow": False}


def make_frame(rows: int = 900) -> pd.DataFrame:
    """Two sensors every ten minutes, the times in the index."""
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-03-01", periods=rows, freq="10min", name="measured")
    wave = np.sin(np.arange(rows) * 2 * np.pi / 144)
    return pd.DataFrame({"T": 20 + wave + rng.normal(0, 0.1, rows), "load": 5 - wave}, index=times)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the training said."""
    return []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Training:
    """A short training; leave it as it is."""
    folder = tmp_path_factory.mktemp("notebook")
    return train(
        make_frame(), target="T", coverage=0.8, models=folder / "models", out=folder / "run", say=lines.append, **QUICK
    )


def test_a_frame_becomes_a_version(trained: Training) -> None:
    """With its report, its scores and its verdict."""
    assert sorted(path.name for path in trained.folder.iterdir()) == ["card.json", "model.onnx", "report.html"]
    assert [(score.target, score.horizon, score.horizon_s) for score in trained.scores.table] == [
        ("T", 1, 600.0),
        ("T", 6, 3600.0),
    ]
    assert trained.verdict.startswith("The model ")
    assert repr(trained) == f"<Training {trained.folder}: {trained.verdict}>"


def test_it_says_how_it_goes(trained: Training, lines: list[str]) -> None:
    """What was understood of the data, an epoch, why it stopped, what is done after that, the verdict, and what to try next."""
    assert lines[0].startswith("model.parquet: time = ")
    assert any(line.startswith("epoch 1: loss ") for line in lines)
    after = lines[next(place for place, line in enumerate(lines) if line.startswith("stopped after epoch 2")) + 1 :]
    assert [line.split()[0] for line in after[:4]] == ["the", "exporting,", "replaying", "scoring"], lines
    assert after[4:] == [trained.verdict, *filter(None, [next_step(trained.scores)])]


def test_the_commands_find_the_rows(trained: Training) -> None:
    """The frame lies in the run folder, so the version is scored again without it, with the same result."""
    assert evaluate_version(trained.folder, data=None, time=None, season=None) == trained.scores


def test_the_scores_are_a_frame(trained: Training) -> None:
    """Of the kind that was given, a row for each target and horizon."""
    table = trained.table()
    assert isinstance(table, pd.DataFrame)
    assert table[["target", "horizon"]].to_numpy().tolist() == [["T", 1], ["T", 6]]
    assert table["mae"].tolist() == [score.model.mae for score in trained.scores.table]
    assert (table["ridge"] > 0).all()


def test_the_forecasts_of_the_held_out_rows_give_the_scores(trained: Training) -> None:
    """Each beside what came true; their mean error is that of the table, as all baselines know these rows too."""
    forecast = trained.forecast()
    columns = ["time", "horizon", "target", "forecast", "p10", "p50", "p90", "low", "high", "actual"]
    assert list(forecast.columns) == columns
    assert (forecast["p10"] <= forecast["p90"]).all()
    errors_by_horizon = (forecast["forecast"] - forecast["actual"]).abs().groupby(forecast["horizon"]).mean()
    assert errors_by_horizon.tolist() == pytest.approx(trained.table()["mae"].tolist(), rel=1e-5)
    frame = make_frame()
    last = forecast[forecast["horizon"] == 6].iloc[10]
    assert last["actual"] == pytest.approx(frame.loc[last["time"] + pd.Timedelta("1h"), "T"])


@pytest.mark.parametrize("index", [True, False])
def test_new_rows_are_forecast_as_a_new_stream(trained: Training, index: bool) -> None:
    """The columns may stand in another order; the times in the index or in a column."""
    rows = make_frame()[["load", "T"]].iloc[:20]
    forecast = trained.forecast(rows if index else rows.reset_index())
    graph = Graph.load(trained.folder)
    wanted, _ = graph.replay(make_frame().iloc[:20].to_numpy(np.float32)[:, None])
    assert np.array_equal(forecast["forecast"], wanted["forecast"].ravel())
    assert forecast["time"].iloc[0] == rows.index[0]


def test_new_rows_may_be_a_file(trained: Training, tmp_path: Path) -> None:
    """A CSV file gives what its frame gives."""
    rows = make_frame().iloc[:20]
    rows.to_csv(tmp_path / "new.csv")
    got, wanted = trained.forecast(tmp_path / "new.csv"), trained.forecast(rows)
    pd.testing.assert_frame_equal(got, wanted, rtol=1e-5)


def test_groups_have_their_names_in_the_forecasts(tmp_path: Path) -> None:
    """Of a frame with several series, and of a file without a frame, whose result is a dictionary of arrays."""
    parts = [make_frame(300).reset_index().assign(pump=name) for name in ("a", "b")]
    path = tmp_path / "pumps.csv"
    pd.concat(parts).to_csv(path, index=False)
    places: dict[str, Any] = {"models": tmp_path / "models", "out": tmp_path / "run", "say": None}
    run = train(path, target=["T"], group="pump", links=("last",), **QUICK, **places)
    forecast = run.forecast()
    assert run.folder.parent.name == "pumps"
    assert set(forecast["group"]) == {"a", "b"}
    assert len(forecast["group"]) == len(forecast["forecast"])
    assert list(run.table())[:3] == ["target", "unit", "horizon"]


def test_classes_have_their_probabilities(tmp_path: Path) -> None:
    """A classification gives a row for each timestep and class."""
    frame = make_frame(400)
    frame["state"] = np.where(frame["T"] > 20, "warm", "cold")
    options: dict[str, Any] = {"epochs": 1, "hidden": 4, "models": tmp_path / "models", "out": tmp_path / "run"}
    forecast = train(frame, task="classify", label="state", say=None, **options).forecast()
    assert list(forecast.columns) == ["time", "class", "probability"]
    assert forecast.groupby("time")["probability"].sum().to_numpy() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 6}, r"horizon: there is no such option; expected 'horizons'"),
        ({"epochs": 0}, r"epochs: got 0, expected: greater than or equal to 1"),
        ({"horizons": (6, 1)}, r"horizons: got .*rising numbers"),
        ({"threads": 0}, r"threads: got 0, expected at least 1"),
        ({"resume": "runs/x"}, r"resume: there is no such option"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """By one line, as on the command line."""
    with pytest.raises(errors.SettingsError, match=message):
        train(make_frame(100), target="T", models=tmp_path, out=tmp_path / "run", **options)


def test_a_frame_without_its_target_is_refused(tmp_path: Path) -> None:
    """The error names the columns that there are."""
    with pytest.raises(errors.MissingColumn, match=r"no column 'P'; there are: T, load"):
        train(make_frame(100), target="P", models=tmp_path, out=tmp_path / "run", say=None, **QUICK)


def test_a_column_of_mixed_values_is_refused(tmp_path: Path) -> None:
    """A frame that no file can hold is no table."""
    frame = make_frame(100)
    frame["mixed"] = [1, "one"] * 50
    with pytest.raises(errors.UnreadableTable, match="not a readable table"):
        train(frame, target="T", models=tmp_path, out=tmp_path / "run", say=None)
