"""`tidegate serve` without metrics: every update of `tidegate.runtime.metrics` does nothing.

`metrics.py` runs it with the arguments of `tidegate`. It finds the updates by name and type, and raises when something is
missing. `metrics.py` checks that /metrics stays at zero. Callers still read the clock and call the functions, so the
measured difference is a lower limit of the cost of metrics.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from tidegate import cli
from tidegate.runtime import metrics

# Attributes that are plain numbers, by class.
NUMBERS = {"ModelMetrics": ["missing_values"], "Metrics": ["state_lost"]}


class Unmoved(dict[Any, Any]):
    """Counts by label that never change."""

    def __setitem__(self, label: object, count: object) -> None:
        """Does nothing."""


def _nothing(*_: object, **__: object) -> None:
    """Does nothing."""


def _freeze_histograms() -> None:
    """Makes every `observe...` method do nothing."""
    for name in [name for name in vars(metrics.Histogram) if name.startswith("observe")]:
        setattr(metrics.Histogram, name, _nothing)
    if metrics.Histogram.observe is not _nothing:
        raise RuntimeError("tidegate.runtime.metrics.Histogram has no `observe`: update this file")


def _freeze_counts(owner: type) -> None:
    """Makes the counts and numbers of a class stay at zero."""
    begin: Callable[..., None] = inspect.getattr_static(owner, "__init__")

    @wraps(begin)
    def begin_frozen(self: Any, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        missing = [name for name in NUMBERS[owner.__name__] if not hasattr(self, name)]
        counts = {name: value for name, value in vars(self).items() if _is_counts(value)}
        if missing or not counts:
            raise RuntimeError(f"{owner.__name__} has no {missing or 'counts'}: update this file")
        for name, value in counts.items():
            if type(value) is dict:
                setattr(self, name, Unmoved(value))
            else:
                type(value).__setitem__ = _nothing  # a special class for counts
        for name in NUMBERS[owner.__name__]:
            vars(self).pop(name, None)
            setattr(owner, name, property(lambda _: 0, _nothing))

    owner.__init__ = begin_frozen  # type: ignore[misc]


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(type(count) is int for count in value.values())


if __name__ == "__main__":
    _freeze_histograms()
    for frozen in NUMBERS:
        _freeze_counts(getattr(metrics, frozen))
    cli.main()
