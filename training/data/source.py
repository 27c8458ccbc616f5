"""The source of a series: a named data set or a file, with the roles of its columns and the derived features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tidegate.training.data import datasets, features
from tidegate.training.data.columns import Columns
from tidegate.training.data.load import column_names, read
from tidegate.training.data.series import Series
from tidegate.training.errors import SettingsError
from tidegate.training.settings import Request, Source


def read_request(request: Request) -> Series:
    """Read the series of a request.

    Raises:
        TrainingError: see `read_source` and `derived_features`.
    """
    return read_source(request.source, derived_features(request.source, request.task, request.horizons))


def read_source(source: Source, names: Sequence[str] = ()) -> Series:
    """Read a named data set or a file.

    Args:
        source: the place and the roles of the columns. A named set has defaults for time, group, label and the column to
            split by; the source overrides them (an empty name: none).
        names: of features; those that `features` can derive are derived.

    Raises:
        TrainingError: the data is missing, cannot be fetched, or cannot be used.
    """
    path = Path(source.data)
    is_file = source.data not in datasets.DATASETS and (path.suffix or path.exists())
    known = None if is_file else datasets.dataset(source.data)
    source = _with_dataset_defaults(source)
    columns = Columns(
        time=source.time,
        period_s=source.period,
        group=source.group,
        split_by=source.split_by,
        label=source.label,
        columns=source.columns,
        exclude=source.exclude,
        derived=[name for name in names if features.is_derived(name)],
        # With the time since the last timestep the network is told of every gap, and resets its state by itself.
        fill_gaps=0 if features.ELAPSED in names else source.fill_gaps,
    )
    if known is None:
        series = read(path, units=source.units, **columns)
    else:
        series = read(datasets.fetch(source.data), name=known.name, units=known.units | source.units, **columns)
    for name in source.units:
        series.column(name)  # a name that does not exist is a mistake
    return series


def derived_features(source: Source, task: Literal["forecast", "classify"], horizons: Sequence[int]) -> list[str]:
    """The names of the derived features of a source.

    Raises:
        SettingsError: the source names a known future, but the task is no forecast.
    """
    if source.known and task != "forecast":
        raise SettingsError("known: a class has no horizons; leave --known out, the columns are features as they are")
    return features.derived_names(source.known, horizons, source.calendar, elapsed=source.elapsed)


def _with_dataset_defaults(source: Source) -> Source:
    """The source with the defaults of a named data set."""
    known = datasets.DATASETS.get(source.data)
    if known is None:
        return source
    own = {"group": known.group, "split_by": known.split_by, "label": known.label}
    roles = {role: column if getattr(source, role) is None else getattr(source, role) for role, column in own.items()}
    # A column that describes rows is no sensor, even if it is not used.
    unused = {column for column in own.values() if column} - set(roles.values())
    exclude = (*source.exclude, *sorted(unused), *(() if source.columns else known.noise))
    return source.model_copy(update={"time": source.time or known.time, "exclude": exclude, **roles})


def source_like(source: Source, card: dict[str, Any] | None) -> Source:
    """Other data for a model: group and label are the columns of the model's own data, if the other data has them."""
    if card is None or source.data in datasets.DATASETS:
        return source
    original = _with_dataset_defaults(source_of(card))
    columns = column_names(Path(source.data))
    roles = {role: getattr(original, role) for role in ("time", "group", "label")}
    kept = {role: column if column in columns else None for role, column in roles.items()}
    return original.model_copy(
        update={
            "data": source.data,
            "columns": source.columns,
            **kept,
            "time": source.time or kept["time"],
            # The features are those of the model, and every row is to be scored.
            "exclude": (),
            "known": (),
            "calendar": (),
            "split_by": None,
            "units": {},
        }
    )


def source_of(card: dict[str, Any]) -> Source:
    """The source in a card. A model from before gaps were filled was trained without that."""
    return Source.model_validate({"fill_gaps": 0} | card["source"])
