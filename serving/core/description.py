"""What a description says: the metadata of a graph, or the same keys in a `model.toml`.

It is checked here without the graph; `core.signature` compares it with the graph. Both gather mistakes instead of
stopping at the first, so that a user is told all of them at once.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from tidegate.core.darts_metadata import DARTS_KEY, describe_darts
from tidegate.core.description_errors import Mistake, faults_of, mistakes_of, without
from tidegate.core.errors import ContractBroken

CONTRACT = 1
METADATA_KEY = "tidegate"

Count = Annotated[StrictInt, Field(gt=0)]
Dimension = Literal["batch", "window"] | Count
Shape = Annotated[tuple[Dimension, ...], Field(max_length=16)]
Name = Annotated[StrictStr, Field(min_length=1)]
Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Number = StrictBool | StrictInt | StrictFloat
Numbers = Number | tuple[Number, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DescribedFeature(_Part):
    """One value of x. `mean` and `std` are those of the training part. `categories` are the words of a feature that was text."""

    name: Name
    unit: StrictStr = ""
    low: Finite | None = None
    high: Finite | None = None
    mean: Finite | None = None
    std: Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] | None = None
    categories: tuple[StrictStr, ...] = ()


class DescribedInput(_Part):
    """An input of the graph that is not state. With a `value` it is a constant."""

    name: Name
    shape: Shape | None = None
    per: Literal["timestep", "stream"] = "timestep"
    window: Count | None = None
    initial: Numbers = 0
    value: Numbers | None = None


class DescribedOutput(_Part):
    """An output of the graph that is a prediction. A server does not read `coverage` and `alarm_rate`."""

    name: Name
    shape: Shape | None = None
    targets: tuple[StrictStr, ...] = ()
    units: tuple[StrictStr, ...] = ()
    horizons: tuple[StrictInt, ...] = ()
    quantiles: tuple[StrictFloat, ...] = ()
    coverage: Any = None
    alarm_rate: Any = None


class DescribedState(_Part):
    """A state tensor: the input, and the output that replaces it."""

    name: Name
    next: Name
    shape: Shape | None = None
    initial: Numbers = 0
    finite: StrictBool = True


class Description(_Part):
    """The whole description. A server does not read `cell`, `data`, `scores` and `training`."""

    contract: StrictInt
    task: StrictStr = ""
    cell: Any = None
    period_s: Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)] | None = None
    input: Name = "x"
    handles_missing: StrictBool = False
    features: Count | Annotated[tuple[DescribedFeature, ...], Field(min_length=1)]
    window: Count | None = None
    inputs: tuple[DescribedInput, ...] = ()
    outputs: Annotated[tuple[DescribedOutput, ...], Field(min_length=1)]
    state: tuple[DescribedState, ...] = ()
    ignore: tuple[Name, ...] = ()
    data: Any = None
    scores: Any = None
    training: Any = None

    @property
    def x(self) -> DescribedInput:
        """The input whose values are the features, as far as it is described."""
        found = next((part for part in self.inputs if part.name == self.input), DescribedInput(name=self.input))
        return found.model_copy(update={"window": found.window or self.window})

    @property
    def others(self) -> tuple[DescribedInput, ...]:
        """The described inputs but x."""
        return tuple(part for part in self.inputs if part.name != self.input)


def _is_timestep(part: DescribedInput) -> bool:
    return part.per == "timestep" and part.value is None


@dataclass(frozen=True, slots=True)
class Described:
    """A description as it was read, with its mistakes.

    Attributes:
        description: what could be read; parts with mistakes are left out. None when nothing could be checked.
        source: where it stands, for messages.
        embedded: whether it is in the graph.
        mistakes: what is wrong, each with what would fix it.
        dropped: the names in the parts that were left out, and the keys of lists that were left out as a whole.

    """

    description: Description | None
    source: str
    embedded: bool
    mistakes: tuple[Mistake, ...] = ()
    dropped: frozenset[str] = field(default_factory=frozenset)


def read_description(
    where: str, metadata: Mapping[str, str], sidecar: str | None, tensors: Mapping[str, Any]
) -> Described:
    """Reads the description of a graph.

    It is the graph's own metadata, or else the text of a `model.toml`, or else what darts wrote into the graph.
    `tensors` are the shapes of the graph's inputs and outputs by name, which darts does not repeat.

    Raises ContractBroken when there is none, or when it cannot be parsed at all.
    """
    try:
        if METADATA_KEY in metadata:
            raw = json.loads(metadata[METADATA_KEY])
            source = f"metadata '{METADATA_KEY}'"
        elif sidecar is not None:
            raw = tomllib.loads(sidecar)
            source = "model.toml"
        elif DARTS_KEY in metadata:
            raw = describe_darts(json.loads(metadata[DARTS_KEY]), tensors)
            source = f"metadata '{DARTS_KEY}'"
        else:
            raise ContractBroken(
                where,
                f"the graph has no metadata '{METADATA_KEY}' and there is no model.toml beside it that describes it; "
                "`tidegate inspect` writes one to start from",
            )
    except tomllib.TOMLDecodeError as error:
        raise ContractBroken(where, f"model.toml is not TOML: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        key = METADATA_KEY if METADATA_KEY in metadata else DARTS_KEY
        raise ContractBroken(where, f"metadata '{key}' is not the JSON that is expected there: {error}") from error
    if not isinstance(raw, dict):
        raise ContractBroken(where, f"{source}: got {type(raw).__name__}, expected an object with keys")
    return _check(raw, source, embedded=source != "model.toml")


def _check(raw: dict[str, Any], source: str, *, embedded: bool) -> Described:
    """Validates what was parsed. A part with a mistake is dropped, and the rest is validated again."""
    mistakes: list[Mistake] = []
    dropped: set[str] = set()
    if raw.get("contract", CONTRACT) != CONTRACT or isinstance(raw.get("contract"), bool):
        mistakes.append(f"contract: got {raw['contract']!r}, this server reads {CONTRACT}")
        raw = {**raw, "contract": CONTRACT}
    while True:
        try:
            description = Description.model_validate(raw)
        except ValidationError as error:
            # A program wrote the metadata, perhaps a newer one: what it knows beside the contract is not a mistake.
            faults = faults_of(error, raw)
            mistakes += mistakes_of(faults, raw, Description, unknown_keys=not embedded)
            left, gone = without(faults, raw, CONTRACT)
            dropped |= gone
            if left is None:
                return Described(None, source, embedded, tuple(mistakes), frozenset(dropped))
            raw = left
            continue
        mistakes += _contradictions(description)
        return Described(description, source, embedded, tuple(mistakes), frozenset(dropped))


def _contradictions(described: Description) -> list[Mistake]:
    """What is wrong between parts that are each right."""
    mistakes = []
    if not isinstance(described.features, int):
        mistakes += _twice(
            "features", [part.name for part in described.features], "give each feature a name of its own"
        )
        mistakes += [
            f"feature '{part.name}': low is {part.low}, above high, which is {part.high}; exchange them"
            for part in described.features
            if part.low is not None and part.high is not None and part.low > part.high
        ]
    mistakes += _twice("outputs", [part.name for part in described.outputs], "describe each output once")
    mistakes += _twice("state", [part.name for part in described.state], "describe each state tensor once")
    mistakes += _twice("inputs", [part.name for part in described.inputs], "describe each input once")
    mistakes += _twice(
        "state", [part.next for part in described.state], "each state tensor has an output of its own as its next value"
    )
    if described.window and described.x.window != described.window:
        mistakes.append(
            f"window: got {described.window}, and {described.x.window} for the input '{described.x.name}'; remove one of them"
        )
    state, x = {part.name for part in described.state}, described.x
    mistakes += [
        f"'{name}' is described as state and as an input; keep one of them"
        for name in dict.fromkeys([x.name, *(part.name for part in described.inputs)])
        if name in state
    ]
    wanted = {part.name for part in described.outputs} | {part.next for part in described.state}
    mistakes += [
        f"ignore: '{name}' is described as an output or as a next state; remove it from one of them"
        for name in described.ignore
        if name in wanted
    ]
    if x.value is not None or x.per == "stream":
        mistakes.append(f"input '{x.name}' has the features, so each timestep brings it; remove 'value' and 'per'")
    mistakes += [
        f"input '{part.name}': 'window' is for inputs that each timestep brings; remove it"
        for part in described.inputs
        if part.window is not None and not _is_timestep(part)
    ]
    mistakes += [
        f"input '{part.name}': 'initial' is what is in a window before the first timestep, and it has no window; "
        "for a constant write 'value'"
        for part in (x, *described.others)
        if part.initial != 0 and part.window is None
    ]
    return mistakes


def _twice(key: str, names: list[str], remedy: str) -> list[Mistake]:
    return [
        f"{key}: '{name}' is there {names.count(name)} times; {remedy}"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
