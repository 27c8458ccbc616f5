"""Which version of a model is its default, and which runs as its shadow. Versions are given newest first; None means no version."""

from collections.abc import Sequence


def default_version(versions: Sequence[str], promoted: str) -> str | None:
    """The version that a stream gets when it names none: the promoted one, else the newest.

    Also the newest when the promoted one is not among the versions.
    """
    if promoted in versions:
        return promoted
    return versions[0] if versions else None


def shadow_version(versions: Sequence[str], default: str | None, chosen: str) -> str | None:
    """The version that runs as a shadow: the chosen one, else the newest that is not the default."""
    return next((each for each in versions if each != default and chosen in ("", each)), None)
