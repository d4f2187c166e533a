"""Tables on standard output: drawn on a terminal, one line for each record in a pipe or a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BORDER = 3  # characters that a drawn table has around the text of a column
LEAST_WIDTH = 6  # of a column whose cells can be read


def draws_tables(console: Console) -> bool:
    """Return whether the console is a terminal that can draw; a pipe, a file and TERM=dumb get plain lines."""
    return console.is_terminal and not console.is_dumb_terminal


def print_cells(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print a table: boxes on a terminal, one record a line where there is none, records in blocks if it is narrow.

    Args:
        console: Where to print it.
        title: Title of the table.
        columns: Names of the columns.
        cells: The text of each cell, row by row.
    """
    if not draws_tables(console):
        _print_lines(console, title, columns, cells)
    elif console.width < sum(_least_width(column) for column in columns):
        _print_blocks(console, title, columns, cells)
    else:
        _print_boxes(console, title, columns, cells)


def _least_width(column: str) -> int:
    return BORDER + max(LEAST_WIDTH, *map(len, column.split() or [""]))


def _print_lines(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print the title as a comment, the names of the columns, and a line for each record; tabs are between cells."""
    lines = [f"# {_one_line(title)}"] if title else []
    lines += ["\t".join(map(_one_line, row)) for row in (columns, *cells)]
    print("\n".join(lines), file=console.file)


def _print_blocks(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print each record as a block with a line for each column."""
    blocks = ["\n".join(f"{column}: {cell}" for column, cell in zip(columns, row, strict=True)) for row in cells]
    print("\n\n".join([title, *blocks] if title else blocks), file=console.file)


def _print_boxes(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)


def _one_line(text: str) -> str:
    """Return a text without line breaks and tabs, which end records and cells.

    Example:
        >>> _one_line("a\\tb\\n c")
        'a b c'
    """
    return " ".join(text.split())
