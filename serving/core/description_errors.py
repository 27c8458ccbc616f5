"""The mistakes in the form of a description, in its own words: what was got, what is expected, what would fix it."""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

# One sentence, in one line.
Mistake = str

# Lists of parts that have a name each.
LISTS = ("features", "inputs", "outputs", "state")
SINGULAR = {"features": "feature", "inputs": "input", "outputs": "output", "state": "state"}

EXPECTED = {
    "contract": "1",
    "task": "text",
    "period_s": "a number of seconds above 0; leave it out when timesteps are irregular",
    "input": "the name of the graph's input that has the features",
    "handles_missing": "true or false",
    "features": 'how many there are, or a list like [{name = "T1", unit = "°C"}]',
    "window": "a whole number of timesteps above 0",
    "inputs": 'a list like [{name = "rate", value = 16000}]',
    "outputs": 'a list like [{name = "y", shape = ["batch", 2]}]',
    "state": 'a list like [{name = "h", next = "h_next", shape = ["batch", 64]}]',
    "ignore": "a list of names of outputs",
    "name": "a name that is not empty",
    "next": "the name of the output that is the next value",
    "shape": 'a list of "batch", "window" and whole numbers above 0, like ["batch", 64]',
    "initial": "a number, or a flat list of numbers",
    "value": "a number, or a flat list of numbers",
    "finite": "true, or false where infinity or NaN in it is no fault",
    "per": '"timestep" or "stream"',
    "unit": "text",
    "low": "a finite number",
    "high": "a finite number",
    "targets": "a list of text",
    "units": "a list of text",
    "horizons": "a list of whole numbers",
    "quantiles": "a list of numbers",
}
SHOWN_CHARACTERS_MAX = 60  # a value in a message: enough to find it


class Fault(NamedTuple):
    """One thing that pydantic found. `place` is the keys and indices that lead to it."""

    place: tuple[Any, ...]
    kind: str
    value: Any


def faults_of(error: ValidationError, raw: Any) -> list[Fault]:
    """What pydantic found in `raw`, each place once."""
    faults: dict[tuple[Any, ...], Fault] = {}
    for detail in error.errors(include_url=False):
        kind = detail["type"] if detail["type"] in ("missing", "extra_forbidden") else "value"
        place = _place(detail["loc"], raw)
        if kind == "missing":
            place = (*place, detail["loc"][-1])
        faults.setdefault(place, Fault(place, kind, detail["input"]))
    # Where a value may be one number or a list, a fault in the list is also reported as "no number".
    return [
        fault
        for place, fault in faults.items()
        if not any(other[: len(place)] == place for other in faults if len(other) > len(place))
    ]


def mistakes_of(faults: Sequence[Fault], raw: Any, model: type[BaseModel], *, unknown_keys: bool) -> list[Mistake]:
    """The faults as sentences. `unknown_keys` tells whether a key that is not known is a mistake."""
    mistakes = []
    for place, kind, value in faults:
        key = next((part for part in reversed(place) if isinstance(part, str)), "")
        if kind == "missing":
            mistakes.append(f"{_title(place, raw)}'{key}' is missing, expected {_expected(key)}")
        elif kind == "value":
            mistakes.append(f"{_title(place, raw)}{_dotted(place)}: got {shown(value)}, expected {_expected(key)}")
        elif unknown_keys:
            mistakes.append(_unknown(place, raw, model))
    return mistakes


def without(faults: Sequence[Fault], raw: dict[str, Any], contract: int) -> tuple[dict[str, Any] | None, set[str]]:
    """The description without its faults, so that the rest can be checked.

    Also returns the names in entries that are left out, and the keys of lists that are left out as a whole. The first
    is None when there is nothing left to check. `contract` takes the place of a wrong contract number.
    """
    whole = {str(place[0]) for place, _, _ in faults if not _in_list(place)}
    fields = {
        place[:3] for place, _, _ in faults if _in_list(place) and len(place) > 2 and place[2] not in ("name", "next")
    }
    entries = {place[:2] for place, _, _ in faults if _in_list(place) and place[:3] not in fields}
    names = whole & {*LISTS, "ignore"}
    left = {key: value for key, value in raw.items() if key not in whole}
    for key in LISTS:
        if not isinstance(left.get(key), list):
            continue
        for index, part in enumerate(left[key]):
            if (key, index) in entries and isinstance(part, dict):
                names |= {value for value in part.values() if isinstance(value, str)}
        left[key] = [
            _entry(part, key, index, fields)
            if (key, index) not in entries
            else {"name": f"features[{index}]"}  # their number counts
            for index, part in enumerate(left[key])
            if key == "features" or (key, index) not in entries
        ]
        if entries and not left[key]:
            names.add(key)
    if "contract" in whole:
        left["contract"] = contract
    return (left if left.get("features") and left.get("outputs") else None), names


def _entry(part: Any, key: str, index: int, fields: set[tuple[Any, ...]]) -> Any:
    """An entry without the keys that have a fault."""
    return {name: part[name] for name in part if (key, index, name) not in fields} if isinstance(part, dict) else part


def shown(value: Any) -> str:
    """A value as it is shown in a message."""
    text = repr(value).replace("\n", " ")
    if isinstance(value, bool):
        text = str(value).lower()
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."


def _place(loc: Sequence[Any], raw: Any) -> tuple[Any, ...]:
    """The part of pydantic's place that is in the description; the rest names members of a union."""
    place: list[Any] = []
    for part in loc:
        is_inside = isinstance(raw, dict) and part in raw
        if is_inside or (isinstance(raw, list) and isinstance(part, int) and part < len(raw)):
            place.append(part)
            raw = raw[part]
    return tuple(place)


def _in_list(place: Sequence[Any]) -> bool:
    """Whether a place is in an entry of one of the lists."""
    return len(place) > 1 and place[0] in LISTS and isinstance(place[1], int)


def _title(place: Sequence[Any], raw: Any) -> str:
    """The entry that a place is in, with its name where it has one; nothing for the entry itself."""
    if not _in_list(place) or len(place) == 2:
        return ""
    entry = raw[place[0]][place[1]]
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"{SINGULAR[place[0]]} '{name}', " if isinstance(name, str) and name else f"{place[0]}[{place[1]}], "


def _dotted(place: Sequence[Any]) -> str:
    """The key of a place; entries of lists that have a title are left out."""
    inner = place[2:] if _in_list(place) and len(place) > 2 else place
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner).lstrip(".")


def _expected(key: str) -> str:
    return EXPECTED.get(key, "another value")


def _unknown(place: tuple[Any, ...], raw: Any, model: type[BaseModel]) -> Mistake:
    key = str(place[-1])
    known = _known_keys(model, place[:-1])
    near = difflib.get_close_matches(key, known, 1)
    remedy = f"did you mean '{near[0]}'?" if near else f"remove it; the keys here are {', '.join(known)}"
    return f"{_title(place, raw)}unknown key '{key}': {remedy}"


def _known_keys(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The keys of the whole description, or of an entry of one of its lists."""
    if not place:
        return list(model.model_fields)
    return list(_entry_model(model.model_fields[place[0]].annotation).model_fields)


def _entry_model(annotation: Any) -> type[BaseModel]:
    """The model of the entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if part is not Ellipsis and (found := _entry_model(part)) is not BaseModel:
            return found
    return BaseModel
