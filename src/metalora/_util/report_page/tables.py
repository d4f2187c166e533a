"""Tables of a page: such that sort, intervals that are drawn in their cells, facts, and confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from metalora._util.report_page.charts import interval_mark
from metalora._util.report_page.markup import Html, joined, text
from metalora._util.report_page.style import SHADES


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: What it shows.
        value: What it is sorted by; None: by its text.
        kind: Its class in the style of the page.
    """

    content: Html
    value: float | None = None
    kind: str = ""

    def marked(self, kind: str) -> Cell:
        """Return the cell with a class of the style."""
        return replace(self, kind=kind)


@dataclass(frozen=True)
class Interval:
    """A number with its interval, and how both are written.

    Attributes:
        mean: The number.
        low: Lower bound; NaN if there is none.
        high: Upper bound, likewise.
        written: The text of the cell.
    """

    mean: float
    low: float
    high: float
    written: str


@dataclass(frozen=True)
class Order:
    """How the rows of a table are sorted already.

    Attributes:
        column: Number of the column.
        rising: Whether the smallest is first.
    """

    column: int
    rising: bool = False


def text_cell(value: object) -> Cell:
    """Return a cell of text, which may have several lines."""
    return Cell(text(value), kind="words")


def number_cell(value: float, written: str) -> Cell:
    """Return a cell of a number.

    Args:
        value: The number, which the table is sorted by.
        written: How it is shown.
    """
    return Cell(text(written), value)


def interval_cells(intervals: Sequence[Interval]) -> list[Cell]:
    """Return cells that show numbers and draw their intervals, all to the same scale.

    Args:
        intervals: The numbers of a column, or of several that are compared with each other.

    Example:
        >>> cells = interval_cells([Interval(0.5, 0.4, 0.6, "50 ± 10"), Interval(0.9, 0.8, 1.0, "90 ± 10")])
        >>> [cell.value for cell in cells]
        [0.5, 0.9]
    """
    bounds = [bound for i in intervals for bound in (i.mean, i.low, i.high) if math.isfinite(bound)]
    if not bounds:
        return [number_cell(interval.mean, interval.written) for interval in intervals]
    scale = min(bounds), max(bounds)
    return [Cell(Html(f"{text(i.written)}{interval_mark(i.mean, i.low, i.high, scale)}"), i.mean) for i in intervals]


def sortable_table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    order: Order | None = None,
    ours: Sequence[int] = (),
) -> Html:
    """Return a table that a click on a heading sorts.

    Args:
        caption: What it shows, for those who do not see it.
        header: Names of the columns.
        rows: The cells of each row; the first one names the row.
        order: How the rows are sorted already.
        ours: Numbers of the rows that are emphasised.
    """
    headings = (
        f'<th scope="col"{_words(rows, number)} aria-sort="{_sorted(number, order)}">'
        f'<button type="button">{text(name)}</button></th>'
        for number, name in enumerate(header)
    )
    body = joined(_row(cells, number in ours) for number, cells in enumerate(rows))
    return _table(caption, "sorts", Html("".join(headings)), body)


def plain_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> Html:
    """Return a table that does not sort; its rows have no names.

    Args:
        caption: What it shows.
        header: Names of the columns.
        rows: The cells of each row.
        kind: Its class in the style of the page.
    """
    headings = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = joined(Html(f"<tr>{joined(map(_cell, cells), '')}</tr>") for cells in rows)
    return _table(caption, kind, Html(headings), body)


def fact_table(caption: str, facts: Mapping[str, object]) -> Html:
    """Return a table of names and values.

    Args:
        caption: What it shows.
        facts: The values by their names.
    """
    rows = (f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in facts.items())
    return _table(caption, "facts", Html('<th scope="col">name</th><th scope="col">value</th>'), Html("\n".join(rows)))


def confusion_table(caption: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """Return a confusion matrix: rows are true classes, columns are predictions, shaded by the share of the row.

    Args:
        caption: What it shows.
        names: The classes.
        counts: Number of inputs of each true class (row) that are predicted as each class (column).
    """
    headings = ['<th scope="col">true, in rows</th>', *(f'<th scope="col">{text(name)}</th>' for name in names)]
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(_shaded(count, count / total) for count in row)
        rows.append(Html(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'))
    return _table(caption, "confusion", Html("".join(headings)), joined(rows))


def _shaded(count: int, share: float) -> str:
    step = math.ceil(SHADES * share)
    return f'<td class="shade-{step}">{count}</td>' if step else "<td>0</td>"


def _table(caption: str, kind: str, headings: Html, body: Html) -> Html:
    name = text(caption)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table class="{kind}">'
        f'<caption class="hidden">{name}</caption><thead><tr>{headings}</tr></thead><tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


def _words(rows: Sequence[Sequence[Cell]], column: int) -> str:
    """Return the class of the heading of a column of text, which is aligned as its cells are."""
    return ' class="words"' if rows and all(cells[column].kind == "words" for cells in rows) else ""


def _sorted(column: int, order: Order | None) -> str:
    if order is None or order.column != column:
        return "none"
    return "ascending" if order.rising else "descending"


def _row(cells: Sequence[Cell], is_ours: bool) -> Html:
    kind = ' class="ours"' if is_ours else ""
    name, *others = cells
    value = _value(name)
    return Html(f'<tr{kind}><th scope="row"{value}>{name.content}</th>{joined(map(_cell, others), "")}</tr>')


def _cell(cell: Cell) -> Html:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return Html(f"<td{kind}{_value(cell)}>{cell.content}</td>")


def _value(cell: Cell) -> str:
    """Return the attribute that a cell is sorted by; an unknown number is empty, and sorted last."""
    if cell.value is None:
        return ""
    return f' data-value="{cell.value:.9g}"' if math.isfinite(cell.value) else ' data-value=""'
