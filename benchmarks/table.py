"""What is printed of results: one table a case."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rounds import Results


def make_table(results: Results, case: str, sides: Sequence[str], base: str, columns: Mapping[str, str]) -> Table:
    """One case: the medians, and in brackets the median ratio to the base in the same round.

    `columns` gives the title of each figure; a side that lacks one has a dash there.
    """
    table = Table(title=case, title_justify="left")
    table.add_column("side")
    for title in columns.values():
        table.add_column(title, justify="right")
    for side in sides:
        table.add_row(side, *(_cell(results, case, side, base, figure) for figure in columns))
    return table


def _cell(results: Results, case: str, side: str, base: str, figure: str) -> str:
    value = results.median(case, side, figure)
    ratio = results.ratio(case, side, base, figure)
    if value is None:
        return "–"
    return shown(value) if ratio is None or side == base else f"{shown(value)} ({ratio:.2f})"


def shown(value: float) -> str:
    """A figure with three digits or more, and no more behind the point than it is good for."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
