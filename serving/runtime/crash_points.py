"""Named points where a test can kill the process as `kill -9` does, to check that nothing is lost there.

    TIDEGATE_CRASH=before-commit:3 tidegate serve ...     dies the third time it gets there

Nothing happens unless `arm` was called. The server calls it once, at start.
"""

import os
import signal
from typing import Literal, get_args

Point = Literal[
    "before-commit", "after-commit", "before-answer", "during-park", "during-take-over",
    "before-move", "during-move", "after-move", "before-promote", "during-promote", "after-promote",
]  # fmt: skip

VARIABLE = "TIDEGATE_CRASH"

_left: dict[str, int] = {}


def arm(point_and_count: str) -> None:
    """Selects a point, "NAME:COUNT"; empty for none.

    Raises ValueError when there is no such point.
    """
    _left.clear()
    if not point_and_count:
        return
    name, _, count = point_and_count.partition(":")
    if name not in get_args(Point) or not count.isdecimal():
        raise ValueError(
            f"{VARIABLE}: got '{point_and_count}', expected NAME:COUNT with one of {', '.join(get_args(Point))}"
        )
    _left[name] = int(count)


def crash_point(name: Point) -> None:
    """Kills the process if this point was selected and its count is reached."""
    if _left and name in _left:
        _left[name] -= 1
        if _left[name] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
