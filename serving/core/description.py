"""What the description of a graph says: JSON in the graph's metadata, or the same keys in a `model.toml`.

It is checked here without the graph; `core.signature` compares it with the graph.
"""

import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidegate.core.errors import ContractBroken

CONTRACT = 1
METADATA_KEY = "tidegate"

Dimension = Literal["batch"] | Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    # Later contracts may add keys. This one ignores them.
    model_config = ConfigDict(extra="ignore", frozen=True)


class DescribedFeature(_Part):
    """A column of x."""

    name: str
    unit: str = ""
    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None


class DescribedOutput(_Part):
    """An output of the graph that is a prediction."""

    name: str
    shape: tuple[Dimension, ...]
    targets: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    horizons: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()


class DescribedState(_Part):
    """A state tensor: the input, and the output that replaces it."""

    name: str
    next: str
    shape: tuple[Dimension, ...]
    initial: float | tuple[float, ...] = 0.0


class Description(_Part):
    """The description: JSON in the graph's metadata, or the same in TOML."""

    contract: int
    task: str = ""
    period_s: float | None = None
    input: str = "x"
    handles_missing: bool = False
    features: Annotated[tuple[DescribedFeature, ...], Field(min_length=1)]
    outputs: Annotated[tuple[DescribedOutput, ...], Field(min_length=1)]
    state: tuple[DescribedState, ...] = ()


def read_description(where: str, metadata: str | None, sidecar: str | None) -> Description:
    """Reads the metadata of a graph, or the text of a `model.toml` where it has none.

    Raises ContractBroken when it is no description of contract 1.
    """
    try:
        if metadata is not None:
            described = Description.model_validate_json(metadata)
        elif sidecar is not None:
            described = Description.model_validate(tomllib.loads(sidecar))
        else:
            raise ContractBroken(
                where,
                f"the graph has no metadata '{METADATA_KEY}' and there is no model.toml beside it that describes it",
            )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "description"
        raise ContractBroken(where, f"description, {field}: {first['msg']}, got {first['input']!r}") from error
    except tomllib.TOMLDecodeError as error:
        raise ContractBroken(where, f"model.toml is not TOML: {error}") from error
    if described.contract != CONTRACT:
        raise ContractBroken(where, f"description, contract: got {described.contract}, this server reads {CONTRACT}")
    return described
