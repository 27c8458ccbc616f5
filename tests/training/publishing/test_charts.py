"""Charts: where numbers come to lie, and what is written."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from tidegate.training.publishing import charts
from tidegate.training.publishing.charts import Plot, Scale


def drawn(svg: str) -> ET.Element:
    """The chart as a strict parser reads it."""
    return ET.fromstring(svg)


def points(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The corners of each piece of the lines of a kind, in pixels."""
    paths = [path.get("d", "") for path in drawn(svg).iter("path") if path.get("class") == f"line {kind}"]
    pieces = [piece for path in paths for piece in path.split("M") if piece]
    return [[tuple(map(float, corner.split(","))) for corner in piece.split("L")] for piece in pieces]  # type: ignore[misc]


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [-3.2, 17.4], [1e-7, 3e-7], [98_000.0, 104_200.0], [5.0, 5.0], [np.nan]]
)
def test_a_linear_scale_holds_its_values_between_round_ticks(values: list[float]) -> None:
    """The ends are ticks, the values lie between them, and ticks are equally far apart."""
    scale = charts.linear(values)
    ticks = [value for value, _ in scale.ticks]
    assert ticks[0] == pytest.approx(scale.low)
    assert ticks[-1] == pytest.approx(scale.high)
    assert all(scale.low <= value <= scale.high for value in values if np.isfinite(value))
    assert 2 <= len(ticks) <= 9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_ticks_have_as_many_digits_as_they_need() -> None:
    """Steps of 0.05 are written with two digits, and a minus sign is no hyphen."""
    assert [text for _, text in charts.linear([-0.1, 0.1], ticks=4).ticks] == ["−0.10", "−0.05", "0.00", "0.05", "0.10"]
    assert [text for _, text in charts.linear([0, 2000], ticks=4).ticks] == ["0", "500", "1,000", "1,500", "2,000"]


def test_a_logarithmic_scale_puts_equal_factors_equally_far_apart() -> None:
    """From 1 to 10 is as far as from 10 to 100."""
    at = charts.logarithmic([1, 10, 100]).at([1, 10, 100])
    assert at.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_a_calendar_has_ticks_at_round_times() -> None:
    """Over two days there are ticks every twelve hours; at midnight they name the day."""
    times = np.datetime64("2024-02-28T07:30", "ns") + np.arange(49) * np.timedelta64(3600 * 10**9, "ns")
    scale = charts.calendar(times, 5)
    assert [text for _, text in scale.ticks] == ["12:00", "29 Feb", "12:00", "1 Mar"]
    assert scale.ticks[1][0] == np.datetime64("2024-02-29").astype("datetime64[s]").astype(int)


def test_a_point_lies_where_its_numbers_say() -> None:
    """The corners of a line are the pixels of the ticks that have the same numbers."""
    plot = Plot("", charts.linear([0, 4]), charts.linear([0, 10]))
    plot.line([0, 4], [10, 5], "a")
    svg = plot.svg()
    grid = {line.get("y1") for line in drawn(svg).iter("line") if line.get("class") == "grid"}
    [[(left, top), (right, _)]] = points(svg, "a")
    assert f"{top:.1f}" == min(grid, key=float)  # type: ignore[arg-type]
    assert left == pytest.approx(plot.left, abs=0.06)
    assert right == pytest.approx(plot.right, abs=0.06)


def test_a_line_is_broken_where_a_number_is_missing() -> None:
    """NaN leaves a hole: nothing is drawn across it, and no NaN is written."""
    plot = Plot("", Scale(0, 5, ()), Scale(0, 5, ()))
    plot.line(np.arange(6), [1, 2, np.nan, 3, 4, 5], "a")
    plot.band(np.arange(6), [0, 0, np.nan, 0, 0, 0], [1, 2, 3, 3, 4, 5], "a")
    svg = plot.svg()
    assert [len(piece) for piece in points(svg, "a")] == [2, 3]
    assert "nan" not in svg.lower()


def test_direct_labels_do_not_touch() -> None:
    """Labels at nearly the same height are moved apart, in the order of their lines, within the chart."""
    plot = Plot("", Scale(0, 1, ()), Scale(0, 1, ()), names=("one",))
    plot.name([(0.02, "low", "a"), (0.01, "lowest", "b"), (0.03, "top", "c")])
    labels = [text for text in drawn(plot.svg()).iter("text") if "name" in text.get("class", "")]
    heights = [float(label.get("y", "nan")) for label in labels]
    assert [label.text for label in labels] == ["top", "low", "lowest"]
    assert min(np.diff(heights)) >= charts.LINE - 0.1
    assert max(heights) <= plot.height


def test_bars_stand_on_zero() -> None:
    """A bar's height is in proportion to its number, up or down from the same line."""
    plot = Plot("", Scale(0, 2, ()), Scale(-10, 10, ()))
    plot.bars([0, 1, 2], [10, -5], "a")
    up, down = (
        [float(box.get(key, "nan")) for key in ("y", "height")]
        for box in drawn(plot.svg()).iter("rect")
        if box.get("class") == "a"
    )
    assert up[1] == pytest.approx(2 * down[1], abs=0.2)
    assert up[0] + up[1] == pytest.approx(down[0], abs=0.2)


def test_every_text_is_escaped() -> None:
    """Names with the signs of XML come out as they were, and break nothing."""
    nasty = "<b>&\"'"
    plot = Plot(nasty, charts.linear([0, 1], nasty), charts.linear([0, 1], nasty), names=(nasty,))
    plot.name([(0.5, nasty, "a")])
    plot.rule(0.5, nasty)
    svgs = [
        plot.svg(),
        charts.bar_rows(nasty, [(nasty, 1.0, nasty, "a")]),
        charts.matrix(nasty, [nasty, "b"], np.eye(2)),
    ]
    for svg in svgs:
        tree = drawn(svg)
        assert tree.get("aria-label") == nasty
        assert nasty in {text.text for text in tree.iter("text")}


def test_the_matrix_shades_by_row_and_writes_the_counts() -> None:
    """A square is as dark as its share of the row; right and wrong have colours of their own."""
    tree = drawn(charts.matrix("", ["x", "y"], [[3, 1], [0, 10]]))
    squares = [(box.get("class"), box.get("fill-opacity")) for box in tree.iter("rect")]
    assert squares == [("right", "0.75"), ("wrong", "0.25"), ("wrong", "0.00"), ("right", "1.00")]
    assert [text.text for text in tree.iter("text") if "cell" in text.get("class", "")] == ["3", "1", "10"]


def test_the_same_arrays_give_the_same_bytes() -> None:
    """Nothing but the arrays is in a chart, and no number has more than a digit after the point in a path."""

    def draw() -> str:
        plot = Plot("", charts.linear([0, 1]), charts.linear([0, 1]))
        plot.line(np.linspace(0, 1, 50), np.random.default_rng(0).random(50), "a")
        return plot.svg()

    assert draw() == draw()
    assert re.search(r"\d\.\d\d", re.sub(r"<text[^>]*>[^<]*</text>", "", draw())) is None
