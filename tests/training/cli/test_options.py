"""Settings as command-line options."""

import inspect
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import typer

from tidegate.training.cli.options import build, options_of
from tidegate.training.settings import Fit, Format, Shape, Source, as_typed

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run() -> Run:
    """Types words after a command that has the options of two classes; gives what it was called with."""
    received: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)

    @app.command()
    @options_of(Shape, Fit)
    def learn(**values: Any) -> None:
        received.update(values)

    def typed(*words: str) -> dict[str, Any]:
        app(args=list(words), standalone_mode=False)
        return received

    return typed


def test_what_is_not_given_is_left_to_the_settings(run: Run) -> None:
    """Every option has the default of its field, which is written down once."""
    values = run()
    assert set(values.values()) == {None}
    assert build(Shape, values) == Shape()
    assert build(Fit, values) == Fit()


def test_every_class_takes_its_own(run: Run) -> None:
    """Words become numbers where the field wants them."""
    values = run("--hidden", "32", "--learning-rate", "1e-3", "--cell", "gru")
    assert build(Shape, values) == Shape(hidden=32, cell="gru")
    assert build(Fit, values) == Fit(learning_rate=1e-3)


def test_what_is_on_can_be_turned_off(run: Run) -> None:
    """A flag whose field is true has a second word."""
    assert build(Shape, run("--no-changes")).changes is False
    assert build(Shape, run()).changes is True


def test_an_option_comes_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`TIDEGATE_WARM_UP` is `--warm-up`."""
    monkeypatch.setenv("TIDEGATE_WARM_UP", "0.2")
    assert build(Fit, run()).warm_up == 0.2


def test_what_may_be_guessed_has_both_words() -> None:
    """A flag whose field is None by default says yes, no, or nothing."""
    received: list[dict[str, Any]] = []
    app = typer.Typer(add_completion=False)

    @app.command()
    @options_of(Format)
    def look(**values: Any) -> None:
        received.append(values)

    for words in ([], ["--header"], ["--no-header"]):
        app(args=words, standalone_mode=False)
    assert [build(Format, values).header for values in received] == [None, True, False]


def test_own_options_come_before_inherited_ones() -> None:
    """The help of `train` begins with the data, not with what is seldom said about it."""

    @options_of(Source)
    def learn(**values: Any) -> None: ...

    names = list(inspect.signature(learn).parameters)
    assert names.index("data") < names.index("time") < names.index("delimiter")


@pytest.mark.parametrize("name", ["flow", "flow rate", "flow, cold", '3" pipe', "it's", "$load", "a=b", "Größe"])
def test_advice_can_be_typed_as_it_stands(name: str) -> None:
    """Whatever a column is called, the shell and the option give its name again."""
    (word,) = shlex.split(as_typed(name))
    assert Source.model_validate({"exclude": word}).exclude == (name,)


def test_units_are_pairs() -> None:
    """A unit for each named column."""
    assert Source.model_validate({"units": "temp=°C, load=kW"}).units == {"temp": "°C", "load": "kW"}
    with pytest.raises(ValueError, match="NAME=TEXT, separated by commas"):
        Source.model_validate({"units": "temp"})
