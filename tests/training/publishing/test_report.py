"""The report: one page that holds what the card says, and draws what the graph said."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest

from tests.timeouts import TIMEOUT_S
from tidegate.training.data.series import Series
from tidegate.training.judging.detection import FaultyCopies, FaultyReplay
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.faults import Event
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.replay import Replay
from tidegate.training.judging.scores import (
    AnomalyScores,
    ClassError,
    ClassScores,
    Confidence,
    Detection,
    Interval,
    Kind,
)
from tidegate.training.judging.verdict import BASELINE_NAMES, verdict
from tidegate.training.learning.run import DataFacts, Outcome, Run
from tidegate.training.network.network import Network
from tidegate.training.publishing import card, report
from tidegate.training.publishing.parity import Parity
from tidegate.training.publishing.report import ReportContent
from tidegate.training.settings import Fit, Source

HISTORY = [{"epoch": n, "loss": 1 / n, "score": 0.9 / n, "learning_rate": 0.004 / n, "elapsed_s": n} for n in (1, 2, 3)]
FORECAST = {
    "Against the baselines",
    "Intervals",
    "Forecasts and true values",
    "Skill by horizon",
    "Calibration",
    "Errors",
    "A new stream",
}
ALWAYS = {"Learning", "Data", "Settings", "Serve it"}


@pytest.fixture(scope="module")
def material(
    exported: tuple[Network, onnx.ModelProto],
    make_series: Callable[..., Series],
    make_facts: Callable[[int], DataFacts],
) -> ReportContent:
    """The card and the replay of an untrained network with two targets."""
    network, model = exported
    content = model.SerializeToString()
    graph, facts, series = Graph(content, "toy"), make_facts(3), make_series()
    record = Run(
        source=Source(data="toy.csv"),
        facts=facts,
        architecture=network.architecture,
        fit=Fit(),
        outcome=Outcome(epochs=3, best_epoch=2, best_score=0.45, seconds=7.5, stopped="patience", threads=1, torch="2"),
    )
    scores = evaluate(graph, series, split=facts.split)
    made = card.make_card(
        name="toy",
        version=3,
        created="2024-05-06T07:08:09+00:00",
        description=graph.description,
        facts=card.training_facts(record, network, Parity(1000, (1, 7), 1e-7, 2e-7, 3e-7, 1e-5)),
        features=card.feature_statistics(record, network, series),
        scores=scores.as_json(),
        verdict=verdict(scores),
        history=HISTORY,
        graph=content,
        run="runs/toy",
    )
    # As it is read back: lists, no tuples.
    return ReportContent(json.loads(json.dumps(made)), Replay.of(graph, series, facts.split.test))


@pytest.fixture(scope="module")
def classifying(material: ReportContent) -> ReportContent:
    """The same with a classification in the place of the forecasts."""
    changed = copy.deepcopy(material.card)
    classes = ("walking", "sitting & standing", "lying")
    error = ClassError(0.81, 0.79, 0.52, 1.68, 0.8, 0.55)
    scores = ClassScores(
        classes=classes,
        count=1234,
        recordings=5,
        model=error,
        frequencies=replace(error, accuracy=0.34, perplexity=3.01),
        linear=None,
        confusion=((300, 20, 0), (31, 200, 9), (0, 12, 662)),
        confidence=(Confidence(0.4, 0.5, 100, 0.46, 0.41), Confidence(0.9, 1.0, 900, 0.97, 0.95)),
    )
    changed["scores"] |= {"table": [], "classification": json.loads(json.dumps(asdict(scores)))}
    changed["scores"]["cold_start"]["table"] = [
        {"target": "class", "horizon": 0, "cold": [0.5] * 8, "warm": [0.2] * 8, "settled": None}
    ]
    changed["scores"]["cold_start"]["steps"] = [1, 2, 5, 10, 20, 50, 100, 200]
    changed["settings"]["network"]["task"] = {"kind": "classify", "classes": list(classes)}
    changed["description"]["outputs"] = [
        {
            "name": "probability",
            "shape": ["batch", 3],
            "targets": list(classes),
            "units": [],
            "horizons": [],
            "quantiles": [],
        }
    ]
    rows = len(material.replay.times)
    replayed = replace(
        material.replay,
        truth=np.empty((rows, 0)),
        outputs={"probability": np.full((rows, 3), 1 / 3, np.float32)},
        horizons=(),
    )
    return ReportContent(changed, replayed)


@pytest.fixture(scope="module")
def watching(material: ReportContent, make_series: Callable[..., Series]) -> ReportContent:
    """The same with an anomaly score, alarms and faults."""
    changed = copy.deepcopy(material.card)
    kinds = (Kind("spike", 3, 4, 0.0), Kind("drift", 0, 1, None))
    model = Detection(3, 2, 5, 1, 0.75, 0.6, 0.67, 0.71, 2.0, 1, 0.4, 0.001, kinds)
    changed["scores"]["anomaly"] = json.loads(
        json.dumps(asdict(AnomalyScores(2, 6, ("s0",), 0.001, model, replace(model, found=1, recall=0.2))))
    )
    changed["scores"]["table"][0]["interval"] = asdict(Interval(0.8, 0.793, 4.2))
    rows = len(material.replay.times)
    rng = np.random.default_rng(0)
    score = rng.random((rows, 1)).astype(np.float32) * 0.3
    score[20:24] = 0.95
    outputs = {"score": score, "alarm": (score > 0.9).astype(np.float32), "warm": np.ones_like(score)}
    outputs["warm"][:22] = 0
    events = (Event("spike", 0, 20, 21), Event("drift", 2, 40, 55))
    return ReportContent(changed, material.replay, FaultyReplay(FaultyCopies(make_series(rows), (events,), 1), outputs))


def tree(page: str) -> ET.Element:
    """The page as a strict parser reads it."""
    return ET.fromstring(page)


def titles(page: str) -> set[str]:
    """The headings of the sections."""
    return {"".join(heading.itertext()) for heading in tree(page).iter("h2")}


def words(page: str) -> str:
    """All that a reader can read."""
    body = tree(page).find("body")
    assert body is not None
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def test_the_page_is_well_formed(material: ReportContent, classifying: ReportContent, watching: ReportContent) -> None:
    """Every tag that is opened is closed, by the rules of HTML and by those of XML."""

    class Strict(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    for some in (material, classifying, watching):
        page = report.build(some)
        parser = Strict()
        parser.feed(page)
        parser.close()
        assert parser.open == []
        assert tree(page).tag == "html"


def test_the_page_needs_nothing_else(material: ReportContent, watching: ReportContent) -> None:
    """No script, no address, and no file: what is loaded is the page."""
    for page in map(report.build, (material, watching)):
        names = {element.tag for element in tree(page).iter()}
        assert not names & {"script", "link", "img", "iframe", "object", "image", "use"}
        given = {key for element in tree(page).iter() for key in element.attrib}
        assert not given & {"src", "href", "srcset", "data"}
        assert re.search(r"https?:|url\(|@import", page) is None


def test_what_people_have_named_is_escaped(material: ReportContent) -> None:
    """A name with the signs of HTML is read as it was typed, and makes no element."""
    nasty = "<script>alert('&\"')</script>"
    changed = json.loads(
        json.dumps(material.card).replace('"s0"', json.dumps(nasty)).replace('"toy"', json.dumps(nasty))
    )
    page = report.build(replace(material, card=changed))
    assert "<script" not in page
    assert words(page).count(nasty) > 5


def test_absent_rows_and_scored_shares_are_told(material: ReportContent) -> None:
    """How many rows are absent, what became of the gaps, and what share is scored at each horizon."""
    changed = copy.deepcopy(material.card)
    changed["data"]["absent"] = {"rows": 15, "gaps": 3, "cuts": 1, "filled": 5, "stretches": 2, "longest": 140}
    changed["scores"]["table"][0]["share"] = 0.4125
    page = words(report.build(replace(material, card=changed)))
    assert "In the series 15 rows are absent, in 3 gaps; 5 of them became missing values, 1 gap cuts the series" in page
    assert "41.2 %" in page
    assert "absent" not in words(report.build(material))


def test_sections_are_there_when_their_data_is(
    material: ReportContent, classifying: ReportContent, watching: ReportContent
) -> None:
    """A forecast, a classification and an anomaly model have what belongs to them, and no empty heading."""
    assert titles(report.build(material)) == FORECAST | ALWAYS
    assert titles(report.build(classifying)) == {"Classes", "Calibration", "A new stream"} | ALWAYS
    assert titles(report.build(watching)) == FORECAST | {"Anomalies"} | ALWAYS


def test_only_alarms_of_a_warm_stream_are_drawn(watching: ReportContent) -> None:
    """Of four alarms the two before the stream is warm are left out, in both widths; each fault has its shade."""
    page = tree(report.build(watching))
    dots = [dot for dot in page.iter("circle") if dot.get("class") == "dot b" and dot.get("r") == "2.0"]
    assert len(dots) == 2 * 2
    assert sum(box.get("class") == "fault" for box in page.iter("rect")) == 2 * 2


@pytest.mark.parametrize(
    ("section", "without"),
    [
        ("Learning", {"history": []}),
        ("A new stream", {"scores": {"cold_start": None}}),
        ("Intervals", {"scores": {"table": "no quantiles"}}),
        ("Calibration", {"scores": {"table": "no quantiles"}}),
        ("Skill by horizon", {"scores": {"table": []}}),
        ("Against the baselines", {"scores": {"table": []}}),
    ],
)
def test_a_section_goes_with_its_data(material: ReportContent, section: str, without: dict[str, Any]) -> None:
    """What the card does not hold leaves no heading behind."""
    changed = copy.deepcopy(material.card)
    for key, value in without.items():
        changed[key] = changed[key] | value if isinstance(value, dict) else value
    if changed["scores"]["table"] == "no quantiles":
        plain = {"pinball": None, "coverage": None, "width": None, "quantiles": []}
        changed["scores"]["table"] = [
            row | {name: row[name] | plain for name in ("model", *BASELINE_NAMES) if row[name]}
            for row in material.card["scores"]["table"]
        ]
    assert section in titles(report.build(material))
    assert section not in titles(report.build(replace(material, card=changed)))


def test_the_page_matches_the_card(material: ReportContent) -> None:
    """Verdict, fingerprint, hash, parameters, errors, settings, versions: each as it stands in the card."""
    facts, page = material.card, words(report.build(material))
    row = facts["scores"]["table"][0]
    for fact in (
        facts["verdict"],
        facts["fingerprint"],
        facts["data"]["sha256"],
        f"{facts['parameters']:,}",
        f"{row['model']['mae']:#.4g}",
        f"{row['persistence']['rmse']:#.4g}",
        f"{100 * row['skill']:.1f} %".replace("-", "−"),
        f"{100 * row['model']['coverage']:.1f} %",
        f"torch {facts['made_with']['torch']}",
        "learning-rate 0.004",
        "the validation score has not improved for a while",
        "1 Jan 2024 to 12 Jan 2024",
        "2024-05-06 07:08 UTC, in 8 s of training",
        "forecasts s0 (°C) and s2 (°C) 1\u00a0h and 3\u00a0h ahead, from 3 features, one timestep every 1 h",
    ):
        assert re.sub(r"\s+", " ", fact) in page, fact


def test_a_baseline_that_is_not_beaten_stands_out(material: ReportContent) -> None:
    """Its error is marked where it is at most the model's, and nowhere else; the verdict is marked too."""
    page = report.build(material)
    rows = material.card["scores"]["table"]
    lost = sum(row[name]["mae"] <= row["model"]["mae"] for row in rows for name in BASELINE_NAMES if row[name])
    weak = sum(row["skill"] <= 0 for row in rows)
    assert lost > 0
    assert page.count('class="lost"') == lost + weak
    assert ('class="verdict fails"' in page) is (not material.card["scores"]["beats_baselines"])


def test_the_same_card_and_replay_give_the_same_bytes(material: ReportContent) -> None:
    """The page holds no clock and no chance."""
    assert report.build(material) == report.build(copy.deepcopy(material))


def test_the_client_on_the_page_is_python(material: ReportContent) -> None:
    """The ten lines compile, and name the model, a feature and an output."""
    client = [pre.text or "" for pre in tree(report.build(material)).iter("pre")][1]
    compile(client, "client", "exec")
    assert all(name in client for name in ("'toy'", "'s0'", "'forecast'"))


def test_the_metadata_holds_the_facts_without_the_long_and_the_fickle(material: ReportContent) -> None:
    """What travels in the graph has the settings and the parts, but neither rows, nor groups, nor seconds."""
    short = card.metadata_facts({key: material.card[key] for key in ("data", "outcome", "settings", "parameters")})
    assert short["settings"] == material.card["settings"]
    assert short["data"]["held_out"] == {
        key: material.card["data"]["held_out"][key] for key in ("rows", "start", "end")
    }
    assert "seconds" not in short["outcome"]
    assert material.card["outcome"]["seconds"] == 7.5


def test_the_card_counts_missing_values_in_each_part(
    make_series: Callable[..., Series],
    exported: tuple[Network, onnx.ModelProto],
    make_facts: Callable[[int], DataFacts],
) -> None:
    """The share of rows without a value, feature by feature, counted in the part's rows alone."""
    series, facts = make_series(), make_facts(3)
    values = series.values.copy()
    first, end = facts.split.test[0]
    values[first : first + (end - first) // 2, 1] = np.nan
    values[:7, 0] = np.nan
    record = Run.model_construct(facts=facts)
    changed = card.feature_statistics(record, exported[0], replace(series, values=values))
    assert [column["missing"]["held_out"] for column in changed] == [0.0, 0.5, 0.0]
    assert [column["missing"]["training"] for column in changed] == [7 / 280, 0.0, 0.0]
    assert changed[1]["mean"] == pytest.approx(float(exported[0].mean[1]))


@pytest.fixture(scope="session")
def browser() -> str:
    """A headless browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            pytest.fail("needs a browser: install chromium")
        pytest.skip("needs a browser: install chromium")
    return found


def test_nothing_is_wider_than_a_phone(
    browser: str, material: ReportContent, classifying: ReportContent, watching: ReportContent, tmp_path: Path
) -> None:
    """In a frame of 360 pixels no page can be scrolled sideways."""
    frames = []
    for index, some in enumerate((material, classifying, watching)):
        (tmp_path / f"{index}.html").write_text(report.build(some), encoding="utf-8")
        frames.append(f'<iframe src="{index}.html" style="width:360px;height:800px;border:0"></iframe>')
    # A window is never narrower than 500 pixels; a frame is, and its page goes by the frame's width.
    script = (
        "onload=()=>{document.title=[...document.querySelectorAll('iframe')]"
        ".map(frame=>frame.contentDocument.documentElement.scrollWidth).join()}"
    )
    outer = tmp_path / "frames.html"
    outer.write_text(f"<!DOCTYPE html><title>-</title>{''.join(frames)}<script>{script}</script>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=True)
    title = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert title is not None
    assert title.group(1) == "360,360,360"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"best_epoch": 0, "gain": 0.0, "corrections_kept": 0}, ["kept: epoch 0", "The network adds nothing to the"]),
        ({"best_epoch": 2, "gain": 0.0312, "corrections_kept": 3}, ["kept: epoch 2", "by 3.1 %; its", "for 3 of the"]),
    ],
)
def test_it_says_what_the_network_adds(material: ReportContent, outcome: dict[str, Any], words: list[str]) -> None:
    """To the regression that it corrects; epoch 0 is that regression alone, and lies within the picture."""
    changed = copy.deepcopy(material.card)
    changed["outcome"] |= outcome
    page = report.build(ReportContent(changed, material.replay))
    assert all(part in page for part in words)
