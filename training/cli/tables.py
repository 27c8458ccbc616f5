"""The form of the tables on a terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

# Columns of the widest table with usual names. On a narrower screen lines wrap; numbers are not cut.
WIDTH = 100


def empty_table(title: str, left: tuple[str, ...], right: tuple[str | Text, ...]) -> Table:
    """A table with columns of words, then columns of numbers, and no rows yet."""
    # At most eighty columns wide with short names, for a log.
    board = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in left:
        board.add_column(heading, no_wrap=True)
    for number in right:
        board.add_column(number, justify="right", no_wrap=True)
    return board
