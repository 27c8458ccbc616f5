"""The log as JSON: every line is an object, and a stream's life can be followed by its id."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.graphs import running_sum, write_model
from tests.servers import serve
from tidegate.client import Client, StreamNotFound
from tidegate.runtime.log_format import choose_format, make_formatter


async def live_and_leave(address: str) -> None:
    """Opens a stream, resumes it, is refused once, and deletes it."""
    async with Client(address) as client:
        for _ in range(2):
            async with client.open("boiler") as stream:
                await stream.step([1.0])
        with pytest.raises(StreamNotFound):
            async with client.open("boiler-2", existence="must_exist"):
                pass
        await client.delete_stream("boiler")


def test_a_stream_can_be_followed_by_its_id(tmp_path: Path) -> None:
    """One line for each event and none for a timestep; every line of the log is JSON."""
    root = write_model(tmp_path / "models", running_sum())
    options = ("--log-format", "json", "--state", f"sqlite://{tmp_path / 'db'}", "--workers", "2")
    with serve(root, *options) as process:
        asyncio.run(live_and_leave(process.address))
        process.popen.terminate()
        _, _, err = process.wait()
    lines: list[dict[str, Any]] = [json.loads(line) for line in err.splitlines()]
    life = [(line["event"], line.get("step", 0)) for line in lines if line.get("stream") == "boiler"]
    assert life == [("new", 0), ("released", 1), ("resumed", 1), ("released", 2), ("deleted", 2)]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert {line["worker"] for line in lines if "event" in line} <= {0, 1}
    (refused,) = [line for line in lines if line.get("stream") == "boiler-2"]
    assert (refused["event"], refused["tenant"], "boiler-2" in refused["reason"]) == ("refused", "default", True)


def test_text_has_no_such_lines(tmp_path: Path) -> None:
    """On a terminal they would be in the way."""
    root = write_model(tmp_path / "models", running_sum())
    with serve(root, "--log-format", "text") as process:
        asyncio.run(live_and_leave(process.address))
        process.popen.terminate()
        _, _, err = process.wait()
    assert "boiler" not in err


@pytest.mark.parametrize(
    ("wanted", "terminal", "form"),
    [("auto", True, "text"), ("auto", False, "json"), ("text", False, "text"), ("json", True, "json")],
)
def test_a_terminal_gets_text(wanted: str, terminal: bool, form: str) -> None:
    """Unless the option says otherwise."""
    assert choose_format(wanted, terminal) == form


def test_a_wrong_format_is_refused() -> None:
    """With what is possible."""
    with pytest.raises(ValueError, match="expected auto, text or json"):
        choose_format("xml", is_terminal=True)


def test_a_traceback_stays_in_its_line() -> None:
    """Whoever reads lines gets whole events."""
    try:
        int("x")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "it failed: %s\nagain", ("x",), sys.exc_info())
    line = make_formatter("json").format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it failed: x\nagain"
    assert "ValueError" in json.loads(line)["error"]
