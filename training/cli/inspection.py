"""An inspection as tables on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.training.cli.tables import empty_table
from tidegate.training.data.inspection import Inspection
from tidegate.training.data.series import duration_text


def table(inspection: Inspection) -> RenderableType:
    """The sentences, the columns, and the longest gaps."""
    parts: list[RenderableType] = [Text(line) for line in inspection.lines]
    parts += [Text(), _columns(inspection)]
    if inspection.gaps:
        parts += [Text("\nthe longest gaps that cut the series\n"), _gaps(inspection)]
    return Group(*parts)


def _columns(inspection: Inspection) -> Table:
    columns = empty_table("", ("column", "kind"), ("missing", "lowest", "mean", "highest"))
    columns.add_column("looks wrong", justify="left")
    for column in inspection.columns:
        columns.add_row(
            Text(f"{column.name}, {column.unit}".removesuffix(", ")),
            column.kind,
            f"{100 * column.missing:.2g} %" if column.missing else "-",
            *("-" if value is None else f"{value:.6g}" for value in (column.low, column.mean, column.high)),
            Text("; ".join(column.remarks)),
        )
    columns.title = None
    return columns


def _gaps(inspection: Inspection) -> Table:
    gaps = empty_table("", ("after", "until"), ("length",))
    if any(gap.group for gap in inspection.gaps):
        gaps.add_column("group")
    for gap in inspection.gaps:
        gaps.add_row(gap.start, gap.end, duration_text(gap.seconds), *([Text(gap.group)] if gap.group else []))
    gaps.title = None
    return gaps
