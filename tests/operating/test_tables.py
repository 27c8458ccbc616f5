"""The tables of docs/operating.md say what the code says."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer.main

from tests.operating.page import PAGE
from tests.root import ROOT
from tidegate.cli import app as cli
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.memory import STREAM_BYTES
from tidegate.store import codec, redis, sqlite_file, sqlite_schema

RULES = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text("utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text("utf-8")


def options_table() -> str:
    """The options of `tidegate serve`, from the command itself: what stands between the two marks of the page."""
    serve: Any = typer.main.get_command(cli.app)
    lines = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for option in serve.commands["serve"].params:
        default = option.default
        shown = "" if default is None or default is False or default in ("", []) else f"`{default}`"
        variable = f"`{option.envvar}`" if option.envvar else ""
        lines.append(f"| `{option.opts[0]}` | {variable} | {shown} | {option.help.replace('<', chr(92) + '<')} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def test_every_option_is_in_the_table() -> None:
    """With its variable, default and meaning, as `tidegate serve --help` has them; on a difference, paste what it should be."""
    found = PAGE.split("<!-- options -->\n")[1].split("\n<!-- /options -->")[0]
    assert found == options_table()
    assert all(f"`--{each.name.replace('_', '-')}`" in found for each in fields(ServerConfig))


def test_every_alert_is_in_the_table() -> None:
    """With its severities and a link to what to do, in the order of the rules."""
    severities: dict[str, list[str]] = {}
    for name, severity in re.findall(r"- alert: (\w+)\n.*?severity: (\w+)\n", RULES, re.DOTALL):
        if severity not in severities.setdefault(name, []):
            severities[name].append(severity)
    rows = re.findall(
        r"^\| \[(Tidegate\w+)\]\(metrics\.md#(\w+)\) \| ([\w, ]+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE
    )
    assert [(name, ", ".join(found)) for name, found in severities.items()] == [(row[0], row[2]) for row in rows]
    for name, anchor, *_ in rows:
        assert anchor == name.lower()
        assert f"### {name}\n" in METRICS


def test_every_link_within_the_page_leads_to_a_heading() -> None:
    """As GitHub makes its anchors; links from other pages too."""
    anchors = {
        re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower()
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"):
        assert set(re.findall(r"operating\.md#([^)]+)\)", Path(page).read_text("utf-8"))) <= anchors, page


def test_the_constants_are_those_of_the_code() -> None:
    """What a stream takes in memory, what the WAL takes, and what the stores write and read."""
    assert f"and {STREAM_BYTES // 1024} KiB on a `Predict` call" in PAGE
    assert f"{sqlite_file.WAL_BYTES >> 20} MB of WAL" in PAGE
    assert f"| SQLite | schema {sqlite_schema.SCHEMA} | 1 and 2:" in PAGE
    assert sorted(sqlite_schema.BUILD) == [0, 1, 2, 3]
    assert f"| redis | format {redis.FORMAT} | 1 and 2, " in PAGE
    assert redis.OLDER_FORMATS == (b"1", b"2")
    assert f"| record of a stream | format {codec.FORMAT} | 1 and 2:" in PAGE
    config = ServerConfig()
    assert f"`--live-max` ({config.live_max:,} for each model and worker)" in PAGE
    assert f"`--drain-after` ({config.drain_after:g} s)" in PAGE
    assert f"`--lag-max` ({config.lag_max:g} s)" in PAGE
