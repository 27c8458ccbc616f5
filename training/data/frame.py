"""Data frames of pandas and polars, which this package does not import: what a frame is, and where its times are."""

from typing import Any

# The name of times that stand in an index without a name.
TIME = "time"


def is_frame(data: Any) -> bool:
    """Whether this is a frame of pandas or polars, and not the place of a file."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def with_time_column(frame: Any) -> Any:
    """The frame with the times of its index, if it has such an index, as its first column."""
    index = getattr(frame, "index", None)
    if index is None or getattr(index.dtype, "kind", "") != "M":
        return frame
    return frame.reset_index(names=index.name or TIME)
