"""What an operator changes about the served models. Supervisors import it too: it needs no library."""

from dataclasses import dataclass
from typing import Literal

# What an operator asks for. "demand" is no operator's: a stream needs a version that is not loaded.
ModelAction = Literal["load", "unload", "reload", "demand"]
# What becomes of a version.
ModelOutcome = Literal["loaded", "refused", "unloading"]


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What became of a version. `reason` says why it was refused."""

    name: str
    version: str
    outcome: ModelOutcome
    reason: str = ""
