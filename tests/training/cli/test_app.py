"""The commands: what they print, write and return."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidegate.cli.sensor_table import InvalidTable, read_table
from tidegate.training.cli.app import main
from tidegate.training.data.load import read
from tidegate.training.data.series import Series
from tidegate.training.data.write import write_csv
from tidegate.training.judging.graph import Graph
from tidegate.training.published import evaluate_version
from tidegate.training.publishing.version import read_card

QUICK = ["--epochs", "8", "--hidden", "8", "--horizons", "1,3", "--chunk", "16", "--burn-in", "4"]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_series: Callable[..., Series]) -> Path:
    """A folder with a table, and what `train` made of it: `result.json`, a run, version 1 and the held-out rows."""
    folder = tmp_path_factory.mktemp("work")
    series = make_series(600, missing=0.02)
    write_csv(series, folder / "toy.csv", series.spans)
    main([*train_arguments(folder), "--held-out", str(folder / "held-out.csv"), "--json", str(folder / "result.json")])
    return folder


def train_arguments(folder: Path, out: str = "run") -> list[str]:
    """The `train` command on the toy table, quick and small."""
    places = ["--models", str(folder / "models"), "--out", str(folder / out)]
    return ["train", "--data", str(folder / "toy.csv"), "--target", "s0", *QUICK, *places]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail as the person's mistake; returns what it said."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    error = printed.splitlines()[-1]
    assert error.startswith("error: ")
    assert "Traceback" not in printed
    return error


def test_training_leaves_a_version_a_run_and_a_result(work: Path) -> None:
    """After `train` the model, its card, the run and the JSON result are there and agree."""
    card = json.loads((work / "models" / "toy" / "1" / "card.json").read_text(encoding="utf-8"))
    result = json.loads((work / "result.json").read_text(encoding="utf-8"))
    assert (work / "models" / "toy" / "1" / "model.onnx").is_file()
    assert {path.name for path in (work / "run").iterdir()} == {"run.json", "metrics.jsonl", "best.pt", "last.pt"}
    assert result["scores"] == card["scores"]
    assert [row["horizon"] for row in card["scores"]["table"]] == [1, 3]
    assert {"mae", "rmse"} < set(card["scores"]["table"][0]["persistence"])
    assert card["parity"]["outputs"] <= 1e-5


def test_the_held_out_rows_are_those_that_were_scored(work: Path) -> None:
    """The CSV of the held-out part has as many rows as were replayed, and begins where the card says."""
    card = json.loads((work / "models" / "toy" / "1" / "card.json").read_text(encoding="utf-8"))
    series = read(work / "held-out.csv")
    assert len(series) == card["scores"]["rows"] == card["data"]["held_out"]["rows"] == 90
    assert series.times[0] == np.datetime64(card["data"]["held_out"]["start"])


def test_a_report_is_made_again_to_the_byte(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report` gives the page that the training wrote, from the version and its data alone."""
    folder = work / "models" / "toy" / "1"
    main(["report", str(folder), "--out", str(work / "pages" / "again.html")])
    assert (work / "pages" / "again.html").read_bytes() == (folder / "report.html").read_bytes()
    assert capsys.readouterr().out == f"report: {work / 'pages' / 'again.html'}\n"


def test_a_report_on_other_data_is_refused(
    work: Path, make_series: Callable[..., Series], capsys: pytest.CaptureFixture[str]
) -> None:
    """A page whose curves and scores were of different rows would lie."""
    series = make_series(600, seed=9)
    write_csv(series, work / "other.csv", series.spans)
    error = refused(capsys, "report", str(work / "models" / "toy" / "1"), "--data", str(work / "other.csv"))
    assert "SHA-256" in error
    assert "tidegate evaluate" in error


def test_the_card_and_the_graph_agree(work: Path) -> None:
    """The fingerprint is the file's; settings, parts and parity in the metadata are those of the card."""
    folder = work / "models" / "toy" / "1"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["fingerprint"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    described = Graph.load(folder).description["training"]
    assert described["settings"] == card["settings"]
    assert described["parity"] == card["parity"]
    assert described["data"]["held_out"]["rows"] == card["data"]["held_out"]["rows"]
    assert [line["epoch"] for line in card["history"]] == list(range(1, card["outcome"]["epochs"] + 1))


def test_evaluating_repeats_the_scores_of_the_training(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` on the version finds its data through the card and gives the same numbers."""
    main(["evaluate", str(work / "models" / "toy" / "1"), "--json", str(work / "again.json")])
    again = json.loads((work / "again.json").read_text(encoding="utf-8"))
    first = json.loads((work / "result.json").read_text(encoding="utf-8"))
    assert again["scores"] == first["scores"]
    assert "persistence" in capsys.readouterr().out


def test_evaluating_on_other_data_scores_all_of_it(work: Path) -> None:
    """Rows that the card does not know were not learned from, so all of them are scored."""
    main(["evaluate", str(work / "models/toy/1"), "--data", str(work / "held-out.csv"), "--json", str(work / "b.json")])
    result = json.loads((work / "b.json").read_text(encoding="utf-8"))
    assert result["scores"]["rows"] == 90


def test_rows_of_any_kind_are_written_as_the_model_takes_them(work: Path, tmp_path: Path) -> None:
    """`--csv` makes of a file that `tidegate stream` refuses one that it reads, with the same values."""
    features = [feature["name"] for feature in read_card(work / "models/toy/1")["features"]]
    lines = (work / "held-out.csv").read_text(encoding="utf-8").splitlines()
    other = tmp_path / "rows.csv"
    other.write_text("\n".join(line.replace(",", ";").replace(".", ",") for line in lines), encoding="utf-16")
    with pytest.raises(InvalidTable, match="text in UTF-16"):
        read_table(other, features)
    main(
        ["evaluate", str(work / "models/toy/1"), "--data", str(other), "--csv", str(tmp_path / "out.csv"), "--all-rows"]
    )
    found, wanted = (read_table(path, features) for path in (tmp_path / "out.csv", work / "held-out.csv"))
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found.when is not None
    assert wanted.when is not None
    assert found.when.moments == wanted.when.moments


def evaluated(work: Path, tmp_path: Path, lines: list[str], *options: str) -> dict[str, Any]:
    """The scores of the model of `work` on a table with these lines."""
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    places = ["--data", str(tmp_path / "rows.csv"), "--json", str(tmp_path / "scores.json")]
    main(["evaluate", str(work / "models/toy/1"), *places, *options])
    return json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]


def test_of_a_file_that_has_grown_only_unlearned_rows_are_scored(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row more, and the scores are those of the training with one row more; the learned rows are counted."""
    lines = (work / "toy.csv").read_text(encoding="utf-8").splitlines()
    scores = evaluated(work, tmp_path, [*lines, "2024-01-26T00:00:00,21,20,19"])
    first = json.loads((work / "result.json").read_text(encoding="utf-8"))["scores"]
    assert (scores["rows"], scores["left_out"]) == (91, 510)
    assert scores["table"][0]["count"] == first["table"][0]["count"] + 1
    for name in ("model", "ridge", "seasonal_naive"):
        assert scores["table"][0][name]["mae"] == pytest.approx(first["table"][0][name]["mae"], rel=0.05)
    assert scores["missing_baselines"] == {}
    assert "510 rows lie in the time that the model has learned from, and were left out" in capsys.readouterr().out


def test_other_data_that_holds_learned_rows_is_scored_without_them(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An extract with the last learned rows: only those after them are scored, and the verdict names the lost baseline."""
    lines = (work / "toy.csv").read_text(encoding="utf-8").splitlines()
    scores = evaluated(work, tmp_path, [lines[0], *lines[-200:]])
    assert (scores["rows"], scores["left_out"]) == (90, 110)
    assert scores["table"][0]["ridge"] is None
    assert "NOT compared with ridge (this data lacks the rows that the model was trained on)" in capsys.readouterr().out
    everything = evaluated(work, tmp_path, [lines[0], *lines[-200:]], "--all-rows")
    assert (everything["rows"], everything["left_out"]) == (200, 0)


def test_learned_rows_alone_cannot_be_scored(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what to do if they are others at the same times."""
    lines = (work / "toy.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.csv").write_text("\n".join(lines[:200]) + "\n", encoding="utf-8")
    error = refused(capsys, "evaluate", str(work / "models/toy/1"), "--data", str(tmp_path / "rows.csv"))
    assert "the model has learned from the time of all 199 rows" in error
    assert "--all-rows" in error


def test_rows_of_another_period_are_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A horizon of one row would be called an hour, and be a minute."""
    lines = ["time,s0,s1,s2", *(f"2030-01-01T{row // 60:02}:{row % 60:02}:00,{row},1,2" for row in range(300))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    error = refused(capsys, "evaluate", str(work / "models/toy/1"), "--data", str(tmp_path / "rows.csv"))
    assert "a row comes every 60 s, expected 3600 s as in the training" in error


def test_exporting_a_run_writes_the_next_version(work: Path) -> None:
    """`export` gives a second version with the scores of the first."""
    main(
        [
            "export",
            str(work / "run"),
            "--models",
            str(work / "second"),
            "--version",
            "7",
            "--json",
            str(work / "e.json"),
        ]
    )
    result = json.loads((work / "e.json").read_text(encoding="utf-8"))
    assert Path(result["model"]) == work / "second" / "toy" / "7"
    assert result["scores"] == json.loads((work / "result.json").read_text(encoding="utf-8"))["scores"]


def test_exporting_with_changed_data_is_refused(work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The scores would be of other rows than the training left out."""
    changed = tmp_path / "toy.csv"
    changed.write_text((work / "toy.csv").read_text(encoding="utf-8") + "2030-01-01T00:00:00,1,2,3\n", encoding="utf-8")
    error = refused(capsys, "export", str(work / "run"), "--models", str(tmp_path), "--data", str(changed))
    assert "SHA-256" in error


def test_a_taken_version_is_refused_before_the_training(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody waits for minutes to hear that the version exists."""
    assert "never overwritten" in refused(capsys, *train_arguments(work, "other"), "--version", "1")
    assert not (work / "other").exists()


def test_a_used_run_folder_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is not written over."""
    assert "holds a run already" in refused(capsys, *train_arguments(work))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--horizons", "1,x"], "horizons: got 'x', expected: a valid integer"),
        (["--horizons", "6,1"], "horizons: got '6,1'"),
        (["--horizons", "0,1"], "horizons: got '0', expected: greater than or equal to 1"),
        (["--learning-rate", "-1"], "learning-rate: got '-1', expected: greater than 0"),
        (["--dropout", "1"], "dropout: got '1', expected: less than 1"),
        (["--name", "a/b"], "name: got 'a/b'"),
        (["--threads", "0"], "threads: got 0, expected at least 1"),
        (["--epochs", "many"], "epochs: got 'many', expected: a valid integer"),
        (["--nonsense"], "--nonsense"),
        (["--data", "nowhere"], "no data set is called 'nowhere'; known: appliances"),
        (["--data", "nowhere.csv"], "cannot read nowhere.csv: No such file"),
    ],
)
def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """Exit code 2, and a line that names the option, what was got and what was expected."""
    assert words in refused(capsys, "train", *arguments)


def test_a_file_needs_a_target(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only named data sets know what is usually forecast."""
    assert "--target" in refused(capsys, "train", "--data", str(work / "toy.csv"), "--horizons", "1")


def test_a_bad_table_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The table's error reaches the person as it is, and leaves no folder behind."""
    table = tmp_path / "bad.csv"
    table.write_text("time,a\n2024-01-01,1\n2024-01-02,high\n", encoding="utf-8")
    out = tmp_path / "run"
    error = refused(capsys, "train", "--data", str(table), "--target", "a", "--out", str(out))
    assert error == (
        "error: bad.csv: column 'a' holds 'high' in row 2, expected numbers; if it means a missing value add "
        "--missing-values high, if the words are states --categories a, or leave the column out with --exclude a"
    )
    assert not out.exists()


def test_a_table_with_several_errors_has_a_line_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All that is wrong with it is told at once."""
    table = tmp_path / "bad.csv"
    table.write_text("time,a,b\n2024-01-01,1,inf\n2024-01-02,high,2\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["train", "--data", str(table), "--target", "a"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["error", "error"]
    assert ["'b'" in lines[-2], "'a'" in lines[-1]] == [True, True] or ["'a'" in lines[-2], "'b'" in lines[-1]] == [
        True,
        True,
    ]


def test_a_guess_can_be_overruled_when_evaluating(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of a file are those of `train`, and what was understood is told."""
    other = work / "other.txt"
    other.write_text((work / "held-out.csv").read_text(encoding="utf-8").replace(",", "~"), encoding="utf-8")
    main(["evaluate", str(work / "models/toy/1"), "--data", str(other), "--delimiter", "~"])
    assert "other.txt: `~` between columns, time = 'time' as year-month-day" in capsys.readouterr().err


def test_options_come_from_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`TIDEGATE_HORIZONS` is `--horizons`."""
    monkeypatch.setenv("TIDEGATE_HORIZONS", "later")
    assert "horizons: got 'later'" in refused(capsys, "train")


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`evaluate` says which file it cannot read."""
    assert "model.onnx: No such file" in refused(capsys, "evaluate", str(tmp_path))


def test_data_sets_are_listed_with_source_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    """`datasets` tells a person what there is and under which terms."""
    main(["datasets"])
    printed = capsys.readouterr().out
    assert "appliances" in printed
    assert "CC BY 4.0" in printed
    assert "19735 rows, 28 channels, one every 600 s" in printed


def test_help_does_not_load_torch() -> None:
    """Help is quick, because neither torch nor onnx nor pyarrow is imported for it."""
    heavy = {"torch", "onnx", "onnxruntime", "pyarrow"}
    code = f"import sys; from tidegate.training.cli import main; main(['train', '--help']); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "--horizons" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_committed_model_keeps_its_promise(appliances: Series) -> None:
    """`models/appliances/1` beats every baseline at every horizon on the rows that it has not seen, and is small."""
    folder = REPOSITORY / "models" / "appliances" / "1"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["data"]["sha256"] == appliances.sha256
    scores = evaluate_version(folder, data=None, time=None, season=None)
    assert scores.wins
    assert [score.horizon for score in scores.table] == [1, 6, 36, 144]
    assert all(score.ridge is not None for score in scores.table)
    for score, promised in zip(scores.table, card["scores"]["table"], strict=True):
        # When the card was written, the stream was new at the first held-out row.
        assert score.model.mae == pytest.approx(promised["model"]["mae"], rel=1e-3)
        assert 0.77 < score.interval.coverage < 0.83
    assert (folder / "model.onnx").stat().st_size < 400_000
