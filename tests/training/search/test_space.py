"""The space of a search, as people type it."""

import json
from pathlib import Path

import pytest

from tidegate.training.errors import SettingsError
from tidegate.training.search.space import Choice, Range, apply_values, as_text, grid_points, read_space
from tidegate.training.settings import OPTIMIZER_DEFAULTS, Fit, Request, Shape, Source


def test_choices_and_ranges_are_read() -> None:
    """Values have the types of their settings; dashes and blanks do not matter."""
    space = read_space("hidden=32,64; learning-rate = 1e-3..1e-2;cell=lstm,gru;lanes=4..16", grid=False)
    assert space == {
        "hidden": Choice((32, 64)),
        "learning_rate": Range(1e-3, 1e-2, integer=False),
        "cell": Choice(("lstm", "gru")),
        "lanes": Range(4, 16, integer=True),
    }


def test_a_wide_range_is_searched_in_its_logarithm() -> None:
    """From a factor of ten on; a range from zero cannot be."""
    assert read_space("learning_rate=1e-3..1e-2", grid=False)["learning_rate"].log
    assert not read_space("learning_rate=2e-3..1e-2", grid=False)["learning_rate"].log
    assert not read_space("dropout=0..0.5", grid=False)["dropout"].log


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_has_the_same_content(tmp_path: Path, suffix: str) -> None:
    """TOML or JSON, with lists or with text."""
    path = tmp_path / f"space.{suffix}"
    toml = 'hidden = [32, 64]\nlearning_rate = "1e-3..1e-2"\n'
    path.write_text(toml if suffix == "toml" else json.dumps({"hidden": [32, 64], "learning_rate": "1e-3..1e-2"}))
    assert read_space(str(path), grid=False) == read_space("hidden=32,64;learning_rate=1e-3..1e-2", grid=False)


@pytest.mark.parametrize("grid", [True, False])
def test_the_usual_space_can_be_searched(grid: bool) -> None:
    """Every value is one of its setting, and what is written can be read again."""
    space = read_space("", grid=grid)
    assert "hidden" in space
    assert read_space(as_text(space), grid=grid) == space


def test_a_grid_has_every_combination_once() -> None:
    """The last setting changes quickest."""
    grid = list(grid_points(read_space("hidden=8,16;layers=1,2", grid=True)))
    assert grid == [{"hidden": hidden, "layers": layers} for hidden in (8, 16) for layers in (1, 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hidden", "got 'hidden', expected name=values, such as hidden=32,64"),
        ("height=3", "no setting 'height' can be searched; there are: cell, "),
        ("epochs=3,4", "no setting 'epochs' can be searched"),
        ("hidden=0,8", "hidden: got '0', expected: greater than or equal to 1"),
        ("hidden=8,8", "hidden has a value twice"),
        ("dropout=0.5..0.1", "dropout: got 0.5..0.1, expected the lower number first"),
        ("dropout=0..1.5", "dropout: got '1.5', expected: less than 1"),
        ("activation=a..b", "activation has no numbers between 'a' and 'b'"),
        ("nowhere.toml", "cannot read nowhere.toml: No such file"),
    ],
)
def test_a_wrong_space_is_one_line(text: str, words: str) -> None:
    """It names the setting, what was got and what was expected."""
    with pytest.raises(SettingsError, match="search: ") as caught:
        read_space(text, grid=False)
    assert words in str(caught.value)


def test_a_grid_takes_no_range() -> None:
    """There is an endless number of values between two."""
    with pytest.raises(SettingsError, match="learning_rate is a range, which has no grid"):
        read_space("learning_rate=1e-3..1e-2", grid=True)


def test_another_optimiser_has_its_own_usual_rate() -> None:
    """What was asked for stays; what is searched is taken."""
    request = Request(source=Source(), name="toy", out=Path("run"), shape=Shape(hidden=8))
    assert apply_values(request, {"optimizer": "sgd"}).fit.learning_rate == OPTIMIZER_DEFAULTS["sgd"][0]
    assert apply_values(request, {"optimizer": "sgd", "learning_rate": 0.5}).fit.learning_rate == 0.5
    asked = request.model_copy(update={"fit": Fit(learning_rate=0.01)})
    assert apply_values(asked, {"optimizer": "sgd"}).fit.learning_rate == 0.01
    assert apply_values(request, {"layers": 2}).shape == Shape(hidden=8, layers=2)


def test_links_and_calendar_are_joined_by_a_plus() -> None:
    """Several words are one value; none is none at all."""
    space = read_space("links=linear,last+season;calendar=none,day+week", grid=False)
    assert space == {"links": Choice(("linear", "last+season")), "calendar": Choice(("none", "day+week"))}
    request = Request(source=Source(), name="x", out=Path("x"))
    changed = apply_values(request, {"links": "last+season", "calendar": "day+week"})
    assert (changed.links, changed.source.calendar) == (("last", "season"), ("day", "week"))
    assert apply_values(changed, {"calendar": "none"}).source.calendar == ()
    with pytest.raises(SettingsError, match=r"search: links: got 'first'"):
        read_space("links=first", grid=False)


def test_the_usual_space_fits_the_data() -> None:
    """Without a season there is no link to it and no calendar; a classification has no links."""
    assert read_space("", grid=False)["links"] == Choice(("linear", "linear+season", "last"))
    without = read_space("", grid=False, season=False)
    assert without["links"] == Choice(("linear", "last"))
    assert "calendar" not in without
    assert "links" not in read_space("", grid=False, forecast=False)
