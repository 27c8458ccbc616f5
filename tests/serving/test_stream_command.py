"""`tidegate stream`, in separate processes: files that it sends, what it writes, and what it refuses."""

import asyncio
import csv
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import LSTM_FEATURES, lstm, write_model
from tests.oracle import replay, sensor_rows
from tests.sensor_files import write_csv
from tests.servers import Process, refused, run_command, serve
from tidegate.client import Client


def stream(server: Process, file: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Sends a file."""
    return run_command("stream", str(file), "--address", server.address, *options)


def test_stream_prints_predictions_beside_what_came_true(server: Process, tmp_path: Path) -> None:
    """The result, and a table with a row for each horizon."""
    ended = stream(server, write_csv(tmp_path / "a.csv", sensor_rows(60)))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert re.match(r"stream \S+ \(new\) under lake/3, rows 1 to 60", lines[0])
    assert re.match(r"60 timesteps in [\d.]+ s", lines[1])
    heading = next(number for number, line in enumerate(lines) if "persistence" in line)
    assert [re.split(r"\s{2,}", line.strip())[:2] for line in lines[heading + 1 : -1]] == [
        ["s0, V", "1"],
        ["s0, V", "3"],
    ]
    assert lines[-1] == "Column when has no times that could be read (t0): gaps between them were not seen."


def test_stream_writes_the_predictions(server: Process, tmp_path: Path) -> None:
    """Every value of every timestep, with its number and its label, equal to the graph alone."""
    rows = sensor_rows(30, seed=5, missing=0.1)
    out = tmp_path / "out.csv"
    ended = stream(server, write_csv(tmp_path / "a.csv", rows), "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    with out.open(newline="") as file:
        header, *written = list(csv.reader(file))
    assert header == ["step", "when", "forecast.+1.s0", "forecast.+3.s0"]
    assert [(row[0], row[1]) for row in written] == [(str(number + 1), f"t{number}") for number in range(30)]
    got = np.array([[float(cell) for cell in row[2:]] for row in written], np.float32)
    expected = np.array([answer["forecast"].ravel() for answer in replay(lstm(), rows)])
    assert np.array_equal(got, expected)


def test_stream_writes_the_scores(server: Process, tmp_path: Path) -> None:
    """The table as JSON, with the errors of the graph alone."""
    rows = sensor_rows(50, seed=6)
    scores = tmp_path / "scores.json"
    ended = stream(server, write_csv(tmp_path / "a.csv", rows), "--scores", str(scores))
    assert ended.returncode == 0, ended.stderr
    written = json.loads(scores.read_text())
    assert written["timesteps"] == 50
    forecasts = np.array([answer["forecast"][:, 0] for answer in replay(lstm(), rows)])
    for place, horizon in enumerate((1, 3)):
        score = written["scores"][place]
        assert (score["target"], score["unit"], score["horizon"]) == ("s0", "V", horizon)
        # Seasonal-naive forecasts need a day (24 rows) of history. All methods are scored on the same rows.
        errors = np.abs(forecasts[24 - horizon : 50 - horizon, place] - rows[24:, 0])
        assert score["scored"] == len(errors)
        assert score["mae"] == pytest.approx(errors.mean(), rel=1e-5)
        assert score["beats_baselines"] == (score["mae"] < min(score["persistence_mae"], score["seasonal_mae"]))


def test_stream_draws_a_picture(server: Process, tmp_path: Path) -> None:
    """As PNG, whatever the name of the file."""
    pytest.importorskip("matplotlib", reason="it is in the extra plot")
    picture = tmp_path / "picture"
    ended = stream(server, write_csv(tmp_path / "a.csv", sensor_rows(60)), "--plot", str(picture))
    assert ended.returncode == 0, ended.stderr
    (written,) = tmp_path.glob("picture*")
    assert written.read_bytes().startswith(b"\x89PNG")


def test_stream_continues_where_a_stream_was(server: Process, tmp_path: Path) -> None:
    """Row n is timestep n: rows that were sent before are not sent again, and the predictions are those of one run."""
    rows = sensor_rows(20, seed=7)
    file, out = write_csv(tmp_path / "a.csv", rows), tmp_path / "out.csv"
    first = stream(server, file, "--stream-id", "goes-on", "--limit", "12")
    assert "(new)" in first.stdout
    second = stream(server, file, "--stream-id", "goes-on", "--out", str(out))
    assert "(resumed) under lake/3, rows 13 to 20" in second.stdout
    with out.open(newline="") as written:
        got = [[float(cell) for cell in row[2:]] for row in list(csv.reader(written))[1:]]
    expected = [answer["forecast"].ravel().tolist() for answer in replay(lstm(), rows)[12:]]
    assert got == expected


def test_stream_that_is_at_the_end_is_refused(server: Process, tmp_path: Path) -> None:
    """There is nothing left to send. The message says how to begin again."""
    file = write_csv(tmp_path / "a.csv", sensor_rows(5))
    assert stream(server, file, "--stream-id", "at-the-end").returncode == 0
    refused(stream(server, file, "--stream-id", "at-the-end"), 2, "at step 5 already", "5 rows", "--stream-id")


def write_sites(path: Path, rows: Any) -> Path:
    """A CSV file whose rows alternate between two sites."""
    lines = write_csv(path, rows).read_text().splitlines()
    sites = ["site", *("north" if number % 2 else "south" for number in range(len(rows)))]
    path.write_text("".join(f"{site},{line}\n" for site, line in zip(sites, lines, strict=True)))
    return path


def test_stream_sends_each_series_of_a_file_to_a_stream_of_its_own(server: Process, tmp_path: Path) -> None:
    """Each gets the answers that it gets alone. Rows that were answered before are not sent again."""
    rows = sensor_rows(40, seed=8)
    file, out, scores = write_sites(tmp_path / "a.csv", rows), tmp_path / "out.csv", tmp_path / "scores.json"
    options = ("--group", "site", "--stream-id", "lake", "--scores", str(scores))
    first = stream(server, file, *options, "--limit", "12")
    assert first.returncode == 0, first.stderr
    assert "stream lake-south (new) under lake/3, site south, rows 1 to 12" in first.stdout
    assert "stream lake-north (new) under lake/3, site north, rows 1 to 12" in first.stdout
    second = stream(server, file, *options, "--out", str(out))
    assert "stream lake-north (resumed) under lake/3, site north, rows 13 to 20" in second.stdout
    with out.open(newline="") as written:
        header, *lines = list(csv.reader(written))
    assert header == ["site", "step", "when", "forecast.+1.s0", "forecast.+3.s0"]
    for name, own in (("south", rows[0::2]), ("north", rows[1::2])):
        got = [[float(cell) for cell in line[3:]] for line in lines if line[0] == name]
        assert got == [answer["forecast"].ravel().tolist() for answer in replay(lstm(), own)[12:]]
    assert json.loads(scores.read_text())["timesteps"] == 16
    refused(stream(server, file, *options), 2, "lake-south", "at step 20 already", "20 rows of site south")


def test_stream_draws_one_of_several_series(server: Process, tmp_path: Path) -> None:
    """One picture, of one stream."""
    pytest.importorskip("matplotlib", reason="it is in the extra plot")
    file, picture = write_sites(tmp_path / "a.csv", sensor_rows(21)), tmp_path / "picture"
    ended = stream(server, file, "--group", "site", "--plot", str(picture))
    assert ended.returncode == 0, ended.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def write_hours(path: Path, rows: Any, hours: Any) -> Path:
    """A CSV file whose rows were measured at these hours."""
    lines = write_csv(path, rows, label=False).read_text().splitlines()
    stamps = ["when", *(f"2026-03-{1 + hour // 24:02}T{hour % 24:02}:00:00Z" for hour in hours)]
    path.write_text("".join(f"{stamp},{line}\n" for stamp, line in zip(stamps, lines, strict=True)))
    return path


@pytest.fixture(scope="module")
def gap_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of the LSTM, whose first feature is words, and whose card says that gaps of two rows were filled and `site` told series apart."""
    card = json.dumps({"source": {"fill_gaps": 2}, "data": {"group_column": "site"}})
    graph = lstm(words=["calm", "storm"])
    with serve(write_model(tmp_path_factory.mktemp("models"), graph, "lake", "3", card=card)) as process:
        yield process


def test_stream_does_at_a_gap_what_evaluate_does(gap_server: Process, tmp_path: Path) -> None:
    """Two absent rows are sent as missing values; after three the rows go to a fresh stream."""
    rows = sensor_rows(40, seed=9)
    hours = [*range(10), *range(12, 30), *range(33, 45)]
    file, out = write_hours(tmp_path / "a.csv", rows, hours), tmp_path / "out.csv"
    ended = stream(gap_server, file, "--stream-id", "gaps", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert "stream gaps (new) under lake/3, rows 1 to 30" in ended.stdout
    assert "stream gaps~2 (new) under lake/3, after a gap, from 2026-03-02T09:00:00Z, rows 1 to 12" in ended.stdout
    absent = np.full((2, len(LSTM_FEATURES)), np.nan, np.float32)
    sent = [np.concatenate([rows[:10], absent, rows[10:28]]), rows[28:]]
    with out.open(newline="") as written:
        got = [[float(cell) for cell in line[2:]] for line in list(csv.reader(written))[1:]]
    assert got == [answer["forecast"].ravel().tolist() for part in sent for answer in replay(lstm(), part)]


def test_stream_sends_the_numbers_of_words(gap_server: Process, tmp_path: Path) -> None:
    """The answers are those to the places of the words in the card; an unknown word is told."""
    rows = sensor_rows(6)
    rows[:, 0] = [1, 0, 0, 1, 1, np.nan]
    file, out = write_csv(tmp_path / "a.csv", rows, label=False), tmp_path / "out.csv"
    header, *lines = file.read_text().splitlines()
    words = ["storm", "calm", "calm", "storm", "storm", "hail"]
    texts = [f"{word},{line.split(',', 1)[1]}" for word, line in zip(words, lines, strict=True)]
    file.write_text("\n".join([header, *texts]) + "\n")
    ended = stream(gap_server, file, "--stream-id", "words", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert f"column {LSTM_FEATURES[0]}: unknown words are missing values: hail" in ended.stdout
    with out.open(newline="") as written:
        got = [[float(cell) for cell in line[2:]] for line in list(csv.reader(written))[1:]]
    assert got == [answer["forecast"].ravel().tolist() for answer in replay(lstm(), rows)]


def test_stream_refuses_what_training_would_read_otherwise(gap_server: Process, tmp_path: Path) -> None:
    """Another period, several series without --group, and times that go back: one line each, and nothing is sent."""
    rows = sensor_rows(8)
    file = write_hours(tmp_path / "a.csv", rows, range(0, 16, 2))
    refused(stream(gap_server, file), 2, "a row comes every 7200 s, expected 3600 s")
    refused(stream(gap_server, write_hours(file, rows, [*range(4), *range(4)])), 2, "row 5", "is earlier", "--group")
    refused(stream(gap_server, write_sites(file, rows)), 2, "column site tells 2 series apart", "--group site")


def test_stream_at_a_rate_takes_its_time(server: Process, tmp_path: Path) -> None:
    """So many timesteps a second."""
    ended = stream(server, write_csv(tmp_path / "a.csv", sensor_rows(11)), "--rate", "50")
    seconds = float(re.search(r"in ([\d.]+) s", ended.stdout)[1])  # type: ignore[index]
    assert 0.2 <= seconds < 2


def test_stream_without_a_time_column_numbers_the_rows(server: Process, tmp_path: Path) -> None:
    """The label is the row number."""
    out = tmp_path / "out.csv"
    stream(server, write_csv(tmp_path / "a.csv", sensor_rows(3), label=False), "--out", str(out))
    assert [line.split(",")[:2] for line in out.read_text().splitlines()] == [
        ["step", "row"],
        ["1", "1"],
        ["2", "2"],
        ["3", "3"],
    ]


# Refused


GOOD = ",".join(LSTM_FEATURES) + "\n" + ",".join("1" * 8) + "\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("when,s0,s1,s2\nt0,1,2,3\n", ["column s3, s4, s5, s6, s7 is missing"]),
        (GOOD + "1,2,three,4,5,6,7,8\n", ["line 3", "column s2", "'three'", "a number"]),
        (GOOD + "1,2,inf,4,5,6,7,8\n", ["line 3", "column s2", "inf", "finite"]),
        (GOOD + "1,2,1e39,4,5,6,7,8\n", ["line 3", "column s2", "1e39", "finite"]),
        (GOOD + "1,2,3\n", ["line 3", "got 3 cells, expected 8"]),
        ("", ["empty", "s0, s1"]),
        (",".join(LSTM_FEATURES) + "\n", ["no row"]),
        (GOOD.replace("s7", "s6", 1), ["s7 is missing"]),
        ("s0," + GOOD.replace("\n", ",\n", 1).replace("1,1", "1,1,1", 1), ["s0", "more than once"]),
    ],
)
def test_stream_a_bad_file_is_refused(server: Process, tmp_path: Path, text: str, words: list[str]) -> None:
    """Exit code 2 and one line with the place and the error. Nothing was sent."""
    file = tmp_path / "bad.csv"
    file.write_text(text)
    name = f"never begun: {tmp_path.name}"
    refused(stream(server, file, "--stream-id", name), 2, "bad.csv", *words)
    asyncio.run(_unknown(server, name))


async def _unknown(server: Process, stream_id: str) -> None:
    async with Client(server.address) as client, client.open(stream_id, existence="must_be_new") as stream:
        await stream.close(forget=True)


def test_stream_an_absent_file_is_refused(server: Process, tmp_path: Path) -> None:
    """Exit code 2 and one line with its path."""
    refused(stream(server, tmp_path / "absent.csv"), 2, "absent.csv")


def test_stream_a_file_that_is_no_text_is_refused(server: Process, tmp_path: Path) -> None:
    """Exit code 2 and one line."""
    file = tmp_path / "bad.csv"
    file.write_bytes(b"\xff\xfe\x00\x01" * 50)
    refused(stream(server, file), 2, "bad.csv")


@pytest.mark.parametrize("option", ["--out", "--scores", "--plot"])
def test_stream_to_a_place_that_cannot_be_written_is_refused(server: Process, tmp_path: Path, option: str) -> None:
    """Exit code 2 and one line with the path, before anything is sent."""
    if option == "--plot":
        pytest.importorskip("matplotlib", reason="it is in the extra plot")
    file = write_csv(tmp_path / "a.csv", sensor_rows(5))
    ended = stream(server, file, option, str(tmp_path / "absent" / "file"), "--stream-id", tmp_path.name)
    refused(ended, 2, str(tmp_path / "absent"))
    asyncio.run(_unknown(server, tmp_path.name))


def test_stream_to_an_unknown_model_is_refused(server: Process, tmp_path: Path) -> None:
    """Exit code 2 and one line with the served models."""
    file = write_csv(tmp_path / "a.csv", sensor_rows(5))
    refused(stream(server, file, "--model", "pond"), 2, "'pond' is not served", "lake/3")


def test_stream_to_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Exit code 1 and one line with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    file = write_csv(tmp_path / "a.csv", sensor_rows(5))
    refused(run_command("stream", str(file), "--address", f"127.0.0.1:{port}"), 1, f"127.0.0.1:{port}")
