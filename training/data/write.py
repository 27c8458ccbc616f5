"""`Series` -> CSV, and a data frame -> Parquet."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tidegate.training.data.series import UNLABELLED, Series, Spans
from tidegate.training.data.table import table_of_frame
from tidegate.training.errors import UnreadableTable
from tidegate.training.outputs import replacing


def write_csv(series: Series, path: Path, spans: Spans) -> None:
    """Write the rows of the spans as CSV: `time` in ISO 8601, the group and the label if there are any, then the features.

    A missing value is an empty cell. Nine digits give the same float32 again, so the streamed values are those that were
    scored.

    Raises:
        OSError: the file cannot be written; an older one is as it was.
    """
    group, label = series.group_column or "group", series.label_column or "label"
    head = ["time", *([group] if series.groups else []), *([label] if series.labels is not None else [])]
    with replacing(path) as file:
        file.write(",".join(_quoted(name) for name in [*head, *series.names]) + "\n")
        for first, end in spans:
            for row in range(first, end):
                cells = ("" if math.isnan(value) else f"{value:.9g}" for value in series.values[row].tolist())
                file.write(",".join([series.stamp(series.times[row]), *_group_and_label(series, row), *cells]) + "\n")


def write_parquet(frame: Any, path: Path) -> None:
    """Write all columns of a frame of pandas or polars.

    Raises:
        UnreadableTable: a column has values of several types, or of one that no file holds.
    """
    table = table_of_frame(frame, path.name)
    try:
        with pa.parquet.ParquetWriter(path, pa.schema(list(table.types.items()))) as writer:
            for batch in table.blocks(list(table.types)):
                writer.write_batch(batch)
    except pa.ArrowException as error:
        raise UnreadableTable(f"{path.name}: not a readable table: {str(error).splitlines()[0]}") from error


def _group_and_label(series: Series, row: int) -> list[str]:
    """The cells of group and label of a row, if there are such columns."""
    cells = []
    if series.groups:
        cells.append(_quoted(series.group_at(row).name))
    if series.labels is not None:
        label = series.labels[row]
        cells.append("" if label == UNLABELLED else _quoted(series.classes[label]))
    return cells


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(sign in name for sign in ',"\n\r') else name
