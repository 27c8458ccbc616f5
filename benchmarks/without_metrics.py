"""A server that measures nothing: `tidegate serve`, in which every update of `serving.runtime.metrics` does nothing.

Run by `metrics.py`, with the arguments of `tidegate`. What is replaced is looked for by name and by kind, and when it is no
longer there this raises; whether all of it was found is seen from outside, by a /metrics that stays at zero.
What a caller does to come by a value, reading the clock and calling, still happens: so the difference is the least that
metrics cost.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from serving import cli
from serving.runtime import metrics

# Attributes that are plain numbers, by class: they are added to where they stand.
NUMBERS = {"ModelMetrics": ["missing_values"], "Metrics": ["state_lost"]}


class Unmoved(dict[Any, Any]):
    """Counts by label that stay as they are."""

    def __setitem__(self, label: object, count: object) -> None:
        """Does nothing."""


def _nothing(*_: object, **__: object) -> None:
    """Does nothing."""


def _freeze_histograms() -> None:
    """Makes every `observe...` do nothing."""
    for name in [name for name in vars(metrics.Histogram) if name.startswith("observe")]:
        setattr(metrics.Histogram, name, _nothing)
    if metrics.Histogram.observe is not _nothing:
        raise RuntimeError("serving.runtime.metrics.Histogram has no `observe`: say here what has become of it")


def _freeze_counts(owner: type) -> None:
    """Makes the counts and numbers of a class stay at zero."""
    begin: Callable[..., None] = inspect.getattr_static(owner, "__init__")

    @wraps(begin)
    def begin_frozen(self: Any, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        missing = [name for name in NUMBERS[owner.__name__] if not hasattr(self, name)]
        counts = {name: value for name, value in vars(self).items() if _is_counts(value)}
        if missing or not counts:
            raise RuntimeError(f"{owner.__name__} has no {missing or 'counts'}: say here what has become of them")
        for name, value in counts.items():
            if type(value) is dict:
                setattr(self, name, Unmoved(value))
            else:
                type(value).__setitem__ = _nothing  # counts of a kind of their own
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
