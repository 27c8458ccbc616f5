"""How a model is served, `<models>/<name>/serving.toml`: what happens to streams on old versions, and the shadow.

The file stands beside the versions, because it holds for all of them and travels with them. Where it says nothing, the
options of `tidegate serve` hold. A file with mistakes is refused as a whole, and the error names all of them.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidegate.core.errors import ContractBroken
from tidegate.core.swap_policy import REWARM_STEPS_MAX, PolicyName, SwapPolicy
from tidegate.runtime.model_files import SETTINGS


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShadowSettings(_Part):
    """The shadow: a share of the streams also runs another version, whose answers nobody sees.

    Args:
        share: the part of the streams, 0 to 1; chosen by a hash of their ids.
        version: the version; empty for the newest that is not the default.
        warmup: how many timesteps of a stream the shadow sees before it is compared: it begins without a state.

    """

    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    version: Annotated[str, Field(pattern=r"^[0-9]*$")] = ""
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 32


class ModelSettings(_Part):
    """The settings of one model, for all of its versions.

    Args:
        policy: what happens to streams on an old version.
        rewarm_steps: how many timesteps are kept of each stream, and replayed into another version.
        shadow: see `ShadowSettings`.

    """

    policy: PolicyName = "pin"
    rewarm_steps: Annotated[int, Field(ge=1, le=REWARM_STEPS_MAX)] = 64
    shadow: ShadowSettings = ShadowSettings()

    @property
    def swap_policy(self) -> SwapPolicy:
        """The policy."""
        return SwapPolicy(self.policy)

    @property
    def raw_steps(self) -> int:
        """How many timesteps slots keep: none unless they are needed."""
        return self.rewarm_steps if self.policy == "rewarm" else 0


def read_settings(folder: Path, default: ModelSettings) -> ModelSettings:
    """The settings in the folder of a model; `default` where its file says nothing, or when it has none.

    Raises:
        ContractBroken: the file cannot be read, is not TOML, or has mistakes; all of them are in the message.

    """
    path = folder / SETTINGS
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, UnicodeDecodeError) as error:
        raise ContractBroken(str(path), f"cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ContractBroken(str(path), f"is not TOML: {error}") from error
    try:
        return ModelSettings.model_validate(default.model_dump() | given)
    except ValidationError as error:
        raise ContractBroken(str(path), "; ".join(_mistake(each) for each in error.errors())) from error


def _mistake(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        allowed = ShadowSettings.model_fields if error["loc"][0] == "shadow" else ModelSettings.model_fields
        return f"{field}: is not known, expected one of {', '.join(allowed)}"
    return f"{field}: got {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
