"""`Series` -> CSV."""

import math
from pathlib import Path

from tidegate.training.data.series import UNLABELLED, Series, Spans, iso
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
                file.write(",".join([iso(series.times[row]), *_group_and_label(series, row), *cells]) + "\n")


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
