"""The source of a series: a named data set or a file, with the roles of its columns and the derived features."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    derived = derived_features(request.source, request.task, request.horizons)
    return read_source(request.source, derived, keep=request.target)


def read_source(
    source: Source,
    names: Sequence[str] = (),
    *,
    keep: Sequence[str] = (),
    words: Mapping[str, Sequence[str]] | None = None,
) -> Series:
    """Read a named data set or a file.

    Args:
        source: the place and the roles of the columns. A named set has defaults for time, group, label and the column to
            split by; the source overrides them (an empty name: none).
        names: of features; those that `features` can derive are derived, and the others stay even if they are constant.
        keep: more columns that stay even if they are constant.
        words: of the categories of a model, by feature, in its order.

    Raises:
        TrainingError: the data is missing, cannot be fetched, or cannot be used.
    """
    path = Path(source.data)
    known = None if is_table(source.data) else datasets.dataset(source.data)
    source = _with_dataset_defaults(source)
    columns = Columns(
        time=source.time,
        period_s=source.period,
        group=source.group,
        split_by=source.split_by,
        label=source.label,
        columns=source.columns,
        exclude=source.exclude,
        keep=(*keep, *source.known, *(name for name in names if not features.is_derived(name))),
        derived=[name for name in names if features.is_derived(name)],
        # With the time since the last timestep the network sees every gap, and resets its state by itself.
        fill_gaps=0 if features.ELAPSED in names else source.fill_gaps,
    )
    if known is None:
        units = source.units
    else:
        path = datasets.fetch(source.data)
        units = known.units | source.units
    series = read(path, name=known.name if known else None, units=units, options=source, words=words, **columns)
    if known:
        series = replace(series, notes=())  # nothing of it had to be guessed
    for name in source.units:
        series.column(name)  # a name that does not exist is a mistake
    return series


def is_table(data: str) -> bool:
    """Whether data is a file, a folder, a pattern or standard input, and no named data set."""
    path = Path(data)
    return data not in datasets.DATASETS and bool(path.suffix or path.exists() or data == "-" or set(data) & set("*?["))


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


# The settings of a table that say what its values and rows mean.
_MEANING = ("missing_values", "categories", "offset", "resample", "resample_by", "timezone")


def source_like(source: Source, card: dict[str, Any] | None) -> Source:
    """Other data for a model: group and label are the columns of the model's own data, if the other data has them."""
    if card is None or source.data in datasets.DATASETS:
        return source
    original = _with_dataset_defaults(source_of(card))
    # What values and rows mean is the model's; how a file is written is its own.
    meant = {name: getattr(original, name) for name in _MEANING if not getattr(source, name)}
    columns = column_names(Path(source.data), source)
    return source.model_copy(
        update=meant
        | {
            "period": original.period,
            "fill_gaps": original.fill_gaps,
            "time": source.time or (original.time if _are_in(original.time, columns) else None),
            "group": original.group if original.group in columns else None,
            "label": original.label if original.label in columns else None,
        }
    )


def _are_in(time: str | None, columns: Sequence[str]) -> bool:
    """Whether the time column, or all of several by commas, is there."""
    return time is not None and all(name.strip() in columns for name in time.split(","))


def source_of(card: dict[str, Any]) -> Source:
    """The source in a card. A model from before gaps were filled was trained without that."""
    return Source.model_validate({"fill_gaps": 0} | card["source"])
