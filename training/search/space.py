"""The search space: the settings to try, and the values of each.

A choice is `hidden=32,64,128`, a range `learning_rate=1e-3..1e-2`; a file holds the same as TOML or JSON. Links and calendar
are joined by a plus: `links=linear,last+season;calendar=none,day+week`.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tidegate.training.errors import SettingsError
from tidegate.training.settings import OPTIMIZER_DEFAULTS, Calendar, Fit, Links, Request, Search, Shape

Value = str | int | float | bool

# The settings that usually matter, around their defaults. The learning rate suits adamw and adam; sgd needs another space.
DEFAULT_SPACE: dict[str, Any] = {
    "links": ["linear", "linear+season", "last"],
    "level": ["on", "off"],
    "calendar": ["none", "day"],
    "kernel": [1, 6],
    "hidden": [32, 64, 128],
    "layers": [1, 2],
    "learning_rate": "1e-3..1e-2",
    "lanes": [8, 16, 32],
    "chunk": [12, 24, 48],
    "dropout": "0..0.3",
    "weight_decay": "0.1..3",
}
DEFAULT_GRID: dict[str, Any] = {"hidden": [32, 64, 128], "learning_rate": [2e-3, 4e-3, 8e-3]}

# A range whose ends differ by at least this factor is searched on a logarithmic scale.
DECADE = 10.0
# Settings of several words, and how they are read. No word at all is `none`.
_WORDS: dict[str, TypeAdapter[Any]] = {"links": TypeAdapter(Links), "calendar": TypeAdapter(Calendar)}
NONE = "none"
# These belong to the search itself, or do not change the model.
_NOT_SEARCHABLE = {"epochs", "minutes", "device", "bidirectional"}


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """A number between two ends, both included."""

    low: float
    high: float
    integer: bool

    @property
    def log(self) -> bool:
        """Whether it is searched on a logarithmic scale."""
        return self.low > 0 and self.high / self.low >= DECADE * (1 - 1e-9)


Space = dict[str, Choice | Range]


def read_space(text: str, *, grid: bool, season: bool = True, forecast: bool = True) -> Space:
    """The space of a text or a file; the default space if the text is empty.

    The default space has links for a forecast alone, and nothing that needs a season of a day where there is none.

    Raises:
        SettingsError: it cannot be read, a setting is unknown, or a value is not allowed.
    """
    given: Mapping[str, Any] = DEFAULT_GRID if grid else _usual_space(season=season, forecast=forecast)
    if text.endswith((".toml", ".json")):
        given = _read_file(Path(text))
    elif text:
        given = dict(_pair(part) for part in text.split(";") if part.strip())
    space = {name: _values(name, value) for name, value in given.items()}
    if grid:
        for name, values in space.items():
            if isinstance(values, Range):
                raise SettingsError(f"search: {name} is a range, which has no grid; list values, or use --sampler tpe")
    return space


def _usual_space(*, season: bool, forecast: bool) -> dict[str, Any]:
    space = dict(DEFAULT_SPACE)
    if not season:
        space["links"] = [links for links in space["links"] if "season" not in links]
        del space["calendar"]
    if not forecast:
        del space["links"]
    return space


def grid_points(space: Space) -> Iterator[dict[str, Value]]:
    """Every combination of a space of choices; the last setting changes fastest."""
    choices = [values.values for values in space.values() if isinstance(values, Choice)]
    return (dict(zip(space, values, strict=True)) for values in product(*choices))


def apply_values(request: Request, values: Mapping[str, Value]) -> Request:
    """The request with other values of its settings.

    Raises:
        ValidationError: the values are inconsistent.
    """
    shape, fit = request.shape.model_dump(), request.fit.model_dump()
    if "optimizer" in values:  # another one has other defaults for rate and decay; given values stay
        own = dict(zip(("learning_rate", "weight_decay"), OPTIMIZER_DEFAULTS[request.fit.optimizer], strict=True))
        fit = {name: value for name, value in fit.items() if name not in own or own[name] != value}
    shape |= {name: values[name] for name in values if name in shape}
    fit |= {name: values[name] for name in values if name in Fit.model_fields}
    more: dict[str, Any] = {"shape": Shape.model_validate(shape), "fit": Fit.model_validate(fit)}
    if "links" in values:
        more["links"] = _words(values["links"])
    if "calendar" in values:
        more["source"] = request.source.model_copy(update={"calendar": _words(values["calendar"])})
    return request.model_copy(update=more)


def check_space(request: Request, search: Search) -> None:
    """Check what can be told without the data.

    Raises:
        SettingsError: the space is wrong, or does not fit the request.
    """
    space = read_space(search.search, grid=search.sampler == "grid")
    apply_values(request, {name: _first_value(values) for name, values in space.items()})


def _first_value(values: Choice | Range) -> Value:
    if isinstance(values, Choice):
        return values.values[0]
    return int(values.low) if values.integer else values.low


def _words(value: Any) -> tuple[str, ...]:
    """The words that a plus joins."""
    return () if value == NONE else tuple(word.strip() for word in str(value).split("+"))


def as_text(space: Space) -> str:
    """The space as text for `--search`."""
    return ";".join(
        f"{name}={values.low:g}..{values.high:g}"
        if isinstance(values, Range)
        else f"{name}={','.join(str(value) for value in values.values)}"
        for name, values in space.items()
    )


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        content = path.read_text("utf-8")
        found = tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
    except OSError as error:
        raise SettingsError(f"search: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"search: {path} is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"search: {path} holds {type(found).__name__}, expected settings with their values")
    return found


def _pair(part: str) -> tuple[str, str]:
    name, equals, values = (word.strip() for word in part.partition("="))
    if not equals:
        raise SettingsError(f"search: got {part.strip()!r}, expected name=values, such as hidden=32,64")
    return name.replace("-", "_"), values


def _values(name: str, value: Any) -> Choice | Range:
    """The values of one setting, each validated by its field."""
    fields = {**Shape.model_fields, **Fit.model_fields, **dict.fromkeys(_WORDS)}
    if name not in fields or name in _NOT_SEARCHABLE:
        known = ", ".join(field for field in fields if field not in _NOT_SEARCHABLE)
        raise SettingsError(f"search: no setting {name!r} can be searched; there are: {known}")
    if isinstance(value, str) and ".." in value:
        low, _, high = value.partition("..")
        return _range(name, _checked(name, low.strip()), _checked(name, high.strip()))
    listed = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    values = tuple(_checked(name, one.strip() if isinstance(one, str) else one) for one in listed)
    if len(set(values)) != len(values):
        raise SettingsError(f"search: {name} has a value twice, expected each once")
    return Choice(values)


def _range(name: str, low: Value, high: Value) -> Range:
    if isinstance(low, str | bool) or isinstance(high, str | bool):
        raise SettingsError(f"search: {name} has no numbers between {low!r} and {high!r}; list its values by commas")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SettingsError(f"search: {name}: got {low:g}..{high:g}, expected the lower number first")
    return Range(low, high, integer=isinstance(low, int))


def _checked(name: str, value: Any) -> Value:
    """A value, validated by its field.

    Raises:
        SettingsError: the field does not allow it.
    """
    settings_class = Shape if name in Shape.model_fields else Fit
    try:
        if name in _WORDS:
            _WORDS[name].validate_python(_words(value))
            return str(value)
        checked: Value = getattr(settings_class.model_validate({name: value}), name)
    except ValidationError as error:
        mistake = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise SettingsError(f"search: {name}: got {value!r}, expected: {mistake}") from error
    return checked
