"""Faults put into copies, and what a detector makes of them: hand-made scores, whose right answer is known."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidegate.training.data.series import Group, Series
from tidegate.training.data.split import Split
from tidegate.training.judging import detection
from tidegate.training.judging.detection import (
    DetectorOutput,
    FaultyReplay,
    _detection,
    inject_into_copies,
    matching_threshold,
)
from tidegate.training.judging.evaluate import evaluate
from tidegate.training.judging.events import bursts
from tidegate.training.judging.faults import Event, FeatureMoments
from tidegate.training.judging.graph import Graph
from tidegate.training.judging.metrics import Bools
from tidegate.training.judging.replay import Replay


def watch(*alarms: int, steps: int = 200, cold: int = 10) -> DetectorOutput:
    """A stream with alarms at these timesteps, a score that follows them, and a few cold timesteps at its beginning."""
    alarm = np.zeros(steps, np.bool_)
    alarm[list(alarms)] = True
    warm = np.arange(steps) >= cold
    return DetectorOutput(alarm, (alarm * 0.9 + 0.05).astype(np.float32), warm)


EVENTS = ((Event("drift", 0, 50, 70), Event("spike", 0, 150, 151)), (Event("spike", 1, 40, 41),))


def test_a_detector_is_summed_up() -> None:
    """Over all streams: two of three events found, one false alarm, two bursts on the clean part."""
    got = _detection([watch(60, 61, 110), watch(42)], EVENTS, [watch(20, 21, 90)], 600.0)
    assert (got.found, got.events, got.false_alarms) == (2, 3, 1)
    assert got.precision == pytest.approx(2 / 3)
    assert got.recall == pytest.approx(2 / 3)
    assert got.f1 == pytest.approx(2 / 3)
    assert got.delay == 6.0  # of 10 and 2
    assert (got.clean_alarms, got.clean_share) == (2, 3 / 190)
    assert got.clean_alarms_a_day == pytest.approx(2 * 86_400 / (190 * 600))
    assert {kind.kind: (kind.found, kind.events) for kind in got.kinds if kind.events} == {
        "spike": (1, 2),
        "drift": (1, 1),
    }


def test_silence_has_no_precision() -> None:
    """Nothing was found, and nothing was false."""
    got = _detection([watch(), watch()], EVENTS, [watch()], None)
    assert (got.found, got.precision, got.f1, got.delay, got.clean_alarms_a_day) == (0, None, 0.0, None, None)


def test_the_best_score_has_the_best_area() -> None:
    """A score that is high exactly in the faults has an average precision of 1; its aftermath and cold start do not count."""
    rows = [*range(50, 70), 150, *range(70, 76), 3]
    got = _detection([watch(*rows), watch(40)], EVENTS, [watch()], 600.0)
    assert got.auc_pr == 1.0


def test_the_threshold_gives_as_many_alarms(make_series: Callable[..., Series]) -> None:
    """No more bursts than asked for, and more would come with a lower one; none asked for, none raised."""
    rng = np.random.default_rng(0)
    scores = [rng.random(3000).astype(np.float32) for _ in range(2)]
    warm = [np.arange(3000) > 100 for _ in range(2)]

    def raised(threshold: float) -> int:
        return sum(len(bursts((score > threshold) & part)) for score, part in zip(scores, warm, strict=True))

    threshold = matching_threshold(20, scores, warm)
    assert 15 <= raised(threshold) <= 20
    assert raised(threshold - 0.005) > 20
    assert raised(matching_threshold(0, scores, warm)) == 0


def every_row(events: tuple[tuple[Event, ...], ...], series: Series) -> Bools:
    """(rows, features) whether an event covers a value of the copies."""
    covered = np.zeros(series.values.shape, np.bool_)
    for (first, _), faults in zip(series.spans, events, strict=True):
        for event in faults:
            covered[first + event.first : first + event.end, event.column] = True
    return covered


def test_copies_differ_only_in_their_events(
    make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy of a segment is that segment, with faults of its own, in the wanted columns, behind the warm-up."""
    monkeypatch.setattr(detection, "EVENTS", 40)
    series = make_series(2600, gap_at=1000)
    segments = series.segments()
    got = inject_into_copies(series, segments, FeatureMoments.of(series, series.spans), columns=[0, 1], warm=150)
    assert got is not None
    assert 35 <= sum(map(len, got.events)) <= 45
    assert all(event.first >= 150 and event.column in (0, 1) for faults in got.events for event in faults)
    clean = np.concatenate([series.values[slice(*segments[0])], series.values[slice(*segments[1])]])
    copies = np.concatenate([clean] * got.copies)
    covered = every_row(got.events, got.series)
    np.testing.assert_array_equal(got.series.values[~covered], copies[~covered])
    assert len(set(got.events)) == len(got.events)


def test_a_long_part_is_not_copied(make_series: Callable[..., Series], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its faults are spread over all of it."""
    monkeypatch.setattr(detection, "EVENTS", 6)
    series = make_series(3000)
    got = inject_into_copies(series, [(0, 3000)], FeatureMoments.of(series, series.spans), columns=[0], warm=100)
    assert got is not None
    assert (got.copies, len(got.events), len(got.series)) == (1, 1, 3000)
    assert got.series.groups == (Group("0", 0, 3000),)


def test_without_room_there_are_no_faults(make_series: Callable[..., Series]) -> None:
    """A segment that is hardly longer than the warm-up holds none."""
    series = make_series(200)
    assert (
        inject_into_copies(series, [(0, 200)], FeatureMoments.of(series, series.spans), columns=[0], warm=150) is None
    )
    assert inject_into_copies(series, [], FeatureMoments.of(series, series.spans), columns=[0], warm=150) is None


@pytest.fixture(scope="module")
def jumps() -> Graph:
    """A graph made by hand: its score is the largest step of a sensor, its alarm a step above 7; warm from the tenth on.

    A missing value is held, so it makes no step.
    """
    node, value = helper.make_node, helper.make_tensor_value_info
    constants = {"limit": [[7.0]], "one": [[1.0]], "ten": [[9.5]]}
    graph = helper.make_graph(
        [
            node("IsNaN", ["x"], ["missing"]),
            node("Where", ["missing", "last", "x"], ["last_next"]),
            node("Sub", ["last_next", "last"], ["step"]),
            node("Abs", ["step"], ["size"]),
            node("ReduceMax", ["size"], ["largest"], axes=[1], keepdims=1),
            node("Greater", ["largest", "limit"], ["high"]),
            node("Cast", ["high"], ["alarm"], to=TensorProto.FLOAT),
            node("Add", ["largest", "one"], ["more"]),
            node("Div", ["largest", "more"], ["score"]),
            node("Add", ["count", "one"], ["count_next"]),
            node("Greater", ["count", "ten"], ["late"]),
            node("Cast", ["late"], ["warm"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["last_next", "axis"], ["forecast"]),
        ],
        "jumps",
        [value(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 3), ("last", 3), ("count", 1))],
        [
            value("forecast", TensorProto.FLOAT, ["batch", 1, 3]),
            *(value(name, TensorProto.FLOAT, ["batch", 1]) for name in ("score", "alarm", "warm", "count_next")),
            value("last_next", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            *(numpy_helper.from_array(np.array(part, np.float32), name) for name, part in constants.items()),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    names = ["s0", "s1", "s2"]
    small = {"shape": ["batch", 1]}
    description = {
        "period_s": 3600.0,
        "features": [{"name": name} for name in names],
        "outputs": [
            {"name": "forecast", "shape": ["batch", 1, 3], "targets": names, "units": ["°C"] * 3, "horizons": [1]},
            {"name": "score", "alarm_rate": 0.01} | small,
            *({"name": name} | small for name in ("alarm", "warm")),
        ],
        "state": [
            {"name": name, "next": f"{name}_next", "shape": ["batch", size]}
            for name, size in (("last", 3), ("count", 1))
        ],
    }
    helper.set_model_props(model, {"tidegate": json.dumps(description)})
    return Graph(model.SerializeToString(), "jumps")


def test_alarms_of_a_graph_are_judged(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """Jumps are found as they come, silence only by the jump after it; PCA stands beside it at no more alarms on the clean part."""
    scores = evaluate(jumps, make_series(3000), split=Split(((0, 1000),), ((1000, 1500),), ((1500, 3000),)))
    part = scores.anomaly
    assert part is not None
    assert (part.columns, part.alarm_rate, part.tolerance) == (("s0", "s1", "s2"), 0.01, 6)
    found = {kind.kind: kind.found / kind.events for kind in part.model.kinds}
    assert found["spike"] == 1.0
    assert found["noise"] > 0.8
    assert found["dropout"] < 1.0  # only where the sensor comes back elsewhere
    assert part.model.during < part.model.found
    assert part.model.events > 100
    assert part.model.delay < 4
    assert part.model.clean_alarms == 0
    assert part.pca.clean_alarms <= part.model.clean_alarms
    assert part.pca.events == part.model.events
    assert json.loads(json.dumps(scores.as_json()))["anomaly"]["model"]["found"] == part.model.found


def test_other_data_is_judged_without_pca(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """Faults are then as large as the judged rows themselves make them."""
    part = evaluate(jumps, make_series(1000, gap_at=400)).anomaly
    assert part is not None
    assert part.pca is None
    assert part.model.recall > 0.3


def test_a_part_without_room_says_so(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """There is no place for a fault, but for the rate of alarms; how many timesteps would be enough is told."""
    scores = evaluate(jumps, make_series(60))
    assert scores.anomaly is None
    assert scores.anomaly_left_out == (
        "No injected faults were scored: the longest held-out stretch has 60 timesteps, and a fault needs 203 with the "
        "warm-up and the rest around it; hold out more rows. Of 50 clean timesteps 0 % have an alarm; 1 % was asked for."
    )
    assert evaluate(jumps, make_series(203)).anomaly is not None
    assert scores.summary()["anomaly_left_out"] == scores.anomaly_left_out


def test_a_part_that_never_gets_warm_says_so(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """Then the rate of alarms is not known either."""
    sentence = evaluate(jumps, make_series(9)).anomaly_left_out
    assert sentence is not None
    assert "has 9 timesteps, and the alarm is not warm by then" in sentence
    assert "--alarm-warm-up. So the rate of its alarms is not known either." in sentence


def test_faults_that_find_no_room_are_named(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """And stretches that get none are counted."""
    split = Split(((0, 1000),), ((1000, 1500),), ((1500, 1800),))
    sentence = evaluate(jumps, make_series(1800), split=split).anomaly_left_out
    assert sentence == (
        "Faults that were not tried, because there is no room for them in held-out stretches of up to 300 timesteps: "
        "leak, decoupled."
    )
    sentence = evaluate(jumps, make_series(3150, gap_at=150)).anomaly_left_out
    assert sentence == (
        "1 of 2 held-out stretches got no faults: they are too short, or others have enough. PCA is not compared: the rows "
        "that the model learned from are not at hand."
    )


def test_nothing_is_said_where_all_was_measured(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """Every kind of fault, PCA, and every stretch."""
    split = Split(((0, 1000),), ((1000, 1500),), ((1500, 4500),))
    assert evaluate(jumps, make_series(4500), split=split).anomaly_left_out is None


def test_the_faults_of_the_report_are_those_that_were_judged(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """The drawn copy differs from the clean rows within its faults alone, and its spikes are found, as the scores say."""
    series, split = make_series(3000), Split(((0, 1000),), ((1000, 1500),), ((1500, 3000),))
    clean = Replay.of(jumps, series, split.test)
    faulted = FaultyReplay.of(jumps, series, split.test, split, clean)
    assert faulted is not None
    inside = np.zeros(1500, np.bool_)
    outputs, events = faulted.drawn()
    for event in events:
        inside[event.first : event.end] = True
    copied = faulted.faults.series.values[:1500]
    changed = (copied != series.values[1500:]).any(axis=1)
    assert changed.any()
    assert not changed[~inside].any()
    alarm = outputs["alarm"][:, 0] > 0.5
    spikes = [event for event in events if event.kind == "spike"]
    assert spikes
    assert all(alarm[event.first] for event in spikes)


def test_a_part_too_short_for_a_fault_draws_none(jumps: Graph, make_series: Callable[..., Series]) -> None:
    """Where there is no room for a fault, the report has no chart of them."""
    series, split = make_series(300), Split(((0, 200),), ((200, 250),), ((250, 300),))
    assert FaultyReplay.of(jumps, series, split.test, split, Replay.of(jumps, series, split.test)) is None
