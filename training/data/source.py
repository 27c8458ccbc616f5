"""Where a series comes from: a named data set or a file, with the roles of its columns and the features made from others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from training.data import datasets, features
from training.data.columns import Columns
from training.data.load import column_names, read
from training.data.series import Series
from training.errors import SettingsError
from training.settings import Request, Source


def read_request(request: Request) -> Series:
    """Read what a request wants to learn from.

    Raises:
        TrainingError: see `read_source` and `made_features`.
    """
    return read_source(request.source, made_features(request.source, request.task, request.horizons))


def read_source(source: Source, made: Sequence[str] = ()) -> Series:
    """Read a named data set or a file.

    Args:
        source: where it is and what its columns are; a named set knows its own time, group, label and what splits it,
            unless the source says otherwise (an empty name: none).
        made: features to make from others, see `features`.

    Raises:
        TrainingError: it is not there, cannot be fetched, or cannot be used.
    """
    path = Path(source.data)
    is_file = source.data not in datasets.DATASETS and (path.suffix or path.exists())
    known = None if is_file else datasets.dataset(source.data)
    source = _resolved(source)
    columns = Columns(
        time=source.time,
        period_s=source.period,
        group=source.group,
        split_by=source.split_by,
        label=source.label,
        columns=source.columns,
        exclude=source.exclude,
        made=made,
    )
    if known is None:
        return read(path, **columns)
    return read(datasets.fetch(source.data), name=known.name, units=known.units, **columns)


def made_features(source: Source, task: Literal["forecast", "classify"], horizons: Sequence[int]) -> list[str]:
    """The names of the features that the source wants to be made.

    Raises:
        SettingsError: the future of a column is wanted where nothing is forecast.
    """
    if source.known and task != "forecast":
        raise SettingsError("known: a class has no horizons; leave --known out, the columns are features as they are")
    return features.made_names(source.known, horizons, source.calendar, elapsed=source.elapsed)


def _resolved(source: Source) -> Source:
    """The source with what a named set knows of itself."""
    known = datasets.DATASETS.get(source.data)
    if known is None:
        return source
    own = {"group": known.group, "split_by": known.split_by, "label": known.label}
    roles = {role: column if getattr(source, role) is None else getattr(source, role) for role, column in own.items()}
    # What tells rows apart is no sensor, also where it is not used.
    unused = {column for column in own.values() if column} - set(roles.values())
    exclude = (*source.exclude, *sorted(unused), *(() if source.columns else known.noise))
    return source.model_copy(update={"time": source.time or known.time, "exclude": exclude, **roles})


def other_source(source: Source, told: dict[str, Any] | None) -> Source:
    """Other data for a model: its group and label are where those of its own data were, if it has such columns."""
    if told is None or source.data in datasets.DATASETS:
        return source
    own = _resolved(Source.model_validate(told["source"]))
    there = column_names(Path(source.data))
    return source.model_copy(
        update={
            "period": own.period,
            "group": own.group if own.group in there else None,
            "label": own.label if own.label in there else None,
        }
    )
