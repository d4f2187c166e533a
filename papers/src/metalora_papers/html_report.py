"""The tables, figures and learning curves of a comparison as one HTML file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from metalora._util.report_page import (
    Cell,
    Html,
    Interval,
    Section,
    Series,
    fact_table,
    flat_settings,
    interval_cells,
    joined,
    line_chart,
    number_cell,
    paragraph,
    sortable_table,
    text,
    text_cell,
    write_page,
)
from metalora_papers.report import PairedComparison, Report, Table
from metalora_papers.rows import Row
from metalora_papers.statistics import is_significant

NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
CELL = re.compile(rf"({NUMBER})(?: ±(\d+(?:\.\d+)?)| \[({NUMBER}), ({NUMBER})\])?\*?")
MISSING = ("–", "")
MAX_LINES = 16  # of a chart
MAX_VALUES = 6  # of a setting that differs between rows
MAX_FIGURES_BYTES = 1_200_000  # the file stays below 2 MB: its pictures take a third more as text


def write_html(report: Report, rows: Sequence[Row], figures: Sequence[Path], path: str | Path, title: str) -> None:
    """Write a comparison as a page, completely or not at all.

    Args:
        report: Its tables and paired comparisons.
        rows: The rows that they were made of.
        figures: Its PNG files.
        path: The file.
        title: Its heading.

    Raises:
        ValueError: The file could not be written, or is not a page of this library.
    """
    sections = [*_table_sections(report.tables), _curves(rows), _figures(figures), _settings(rows)]
    shown = [section for section in sections if section.body]
    note = f"Made of {len(rows)} rows of results; intervals are of 95 %."
    write_page(path, title, verdict(report.comparisons), shown, note)


def write_tables(tables: Sequence[Table], path: str | Path, title: str, verdict: str) -> None:
    """Write tables that no rows are behind as a page, completely or not at all.

    Args:
        tables: The tables.
        path: The file.
        title: The heading of the page.
        verdict: What it says, in a sentence.

    Raises:
        ValueError: The file could not be written, or is not a page of this library.
    """
    write_page(path, title, verdict, _table_sections(tables))


def verdict(comparisons: Sequence[PairedComparison]) -> str:
    """Say in a sentence or two which paired comparisons differ after Holm's correction.

    Example:
        >>> verdict([])
        'There is no paired comparison here: it needs two methods with two seeds in common.'
    """
    if not comparisons:
        return "There is no paired comparison here: it needs two methods with two seeds in common."
    clear = [pair for pair in comparisons if is_significant(pair.p_holm, len(pair.seeds))]
    head = f"{len(clear)} of {len(comparisons)} paired comparisons differ (t-test, p < 0.05 after Holm's correction)"
    if not clear:
        return f"{head}: no treatment can be told apart from its best baseline of at least its size."
    return f"{head}: {'; '.join(map(_difference, clear))}."


def _difference(pair: PairedComparison) -> str:
    side = "above" if pair.difference > 0 else "below"
    return f"{pair.treatment} is {side} {pair.baseline} by {abs(pair.difference):.3f} in {pair.metric}"


# ---- tables ----------------------------------------------------------------------------------------------------------
def _table_sections(tables: Sequence[Table]) -> list[Section]:
    return [_table_section(number, table) for number, table in enumerate(tables, 1)]


def _table_section(number: int, table: Table) -> Section:
    columns = [_column([cells[place] for cells in table.cells]) for place in range(len(table.columns))]
    rows = list(zip(*columns, strict=True))
    title = table.title or f"Table {number}"
    return Section(title, table.note, sortable_table(title, table.columns, rows))


def _column(cells: Sequence[str]) -> list[Cell]:
    """Return the cells of a column; numbers with intervals are drawn, all to the scale of the column."""
    values = [parse_cell(cell) for cell in cells]
    if any(value is None for value in values):
        return [text_cell(cell) for cell in cells]
    intervals = [value for value in values if value is not None]
    if any(interval.low < interval.high for interval in intervals):
        return interval_cells(intervals)
    return [number_cell(interval.mean, interval.written) for interval in intervals]


def parse_cell(cell: str) -> Interval | None:
    """Return the number and the interval of a cell as `summary_table` and `comparison_table` write it.

    Returns:
        The interval; NaN for a bound that the cell has not, and for all of a dash; None for a cell of text.

    Example:
        >>> parse_cell("81.4 ±0.5")
        Interval(mean=81.4, low=80.9, high=81.9, written='81.4 ±0.5')
        >>> parse_cell("+0.010 [-0.002, +0.020]").low
        -0.002
        >>> parse_cell("lora") is None
        True
    """
    if cell in MISSING:
        return Interval(math.nan, math.nan, math.nan, cell)
    match = CELL.fullmatch(cell)
    if match is None:
        return None
    mean, margin, low, high = (None if part is None else float(part.replace(",", "")) for part in match.groups())
    assert mean is not None
    if margin is not None:
        low, high = mean - margin, mean + margin
    return Interval(mean, math.nan if low is None else low, math.nan if high is None else high, cell)


# ---- learning curves and figures -------------------------------------------------------------------------------------
def _curves(rows: Sequence[Row]) -> Section:
    groups = _groups([row for row in rows if row["results"].get("history")])
    shown = dict(list(groups.items())[:MAX_LINES])
    charts = [
        line_chart(f"{label} over steps", _lines(shown, metric), "steps", label)
        for metric, label in (("loss", "loss"), ("accuracy", "accuracy"), ("mean", "mean score"))
    ]
    charts = [chart for chart in charts if chart]
    note = "The mean over the seeds; of accuracies, over the tasks."
    if len(groups) > MAX_LINES:
        note += f" The first {MAX_LINES} of {len(groups)} settings are drawn."
    return Section("Learning curves", note, Html(f'<div class="side">{joined(charts)}</div>') if charts else Html(""))


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each setting: those that differ in nothing but the seed, by what tells settings apart."""
    settings = [flat_settings(row["config"]) for row in rows]
    names = {name: None for setting in settings for name in setting if name.split(".")[-1] != "seed"}
    differing = [name for name in names if len({repr(setting.get(name)) for setting in settings}) > 1]
    groups: dict[str, list[Row]] = {}
    for row, setting in zip(rows, settings, strict=True):
        others = [f"{name} {setting.get(name)}" for name in differing if name != "method"]
        groups.setdefault(", ".join([str(setting.get("method")), *others]), []).append(row)
    return _by_method(groups)


def _by_method(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return groups by their method alone where it has one group."""
    methods = [str(members[0]["config"].get("method")) for members in groups.values()]
    return {
        method if methods.count(method) == 1 else name: members
        for method, (name, members) in zip(methods, groups.items(), strict=True)
    }


def _lines(groups: dict[str, list[Row]], metric: str) -> list[Series]:
    return [Series(name, _mean_curve(members, metric)) for name, members in groups.items()]


def _mean_curve(rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """Return the mean of a metric over rows, at every step that all of them have."""
    curves = [_curve(row, metric) for row in rows]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def _curve(row: Row, metric: str) -> dict[int, float]:
    """Return the metric of a row at each step that has it."""
    values = {point["step"]: _value(point.get(metric)) for point in row["results"]["history"]}
    return {step: value for step, value in values.items() if value is not None}


def _value(value: Any) -> float | None:
    """Return a number, or the mean of the numbers of several tasks; None if there is none."""
    if isinstance(value, dict):
        numbers = [number for number in map(_value, value.values()) if number is not None]
        return fmean(numbers) if numbers else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _figures(paths: Sequence[Path]) -> Section:
    parts, size = [], 0
    for path in paths:
        content = path.read_bytes()
        size += len(content)
        if size > MAX_FIGURES_BYTES:
            parts.append(paragraph(f"{path.name} is not shown, which keeps the file small."))
            continue
        name, encoded = text(path.stem), base64.b64encode(content).decode()
        parts.append(Html(f'<p><img class="plot" alt="{name}" src="data:image/png;base64,{encoded}"></p>'))
    return Section("Figures", "", joined(parts))


# ---- settings --------------------------------------------------------------------------------------------------------
def _settings(rows: Sequence[Row]) -> Section:
    kinds = ("commit", "seed", "config", "environment")
    flat = [flat_settings({name: row[name] for name in kinds if name in row}) for row in rows]
    names = dict.fromkeys(name for setting in flat for name in setting)
    ordered = sorted(names, key=lambda name: kinds.index(name.split(".")[0]))
    facts = {_shown_name(name): _values([setting[name] for setting in flat if name in setting]) for name in ordered}
    body = fact_table("Settings and versions", facts) if facts else Html("")
    note = "What the rows were made with; if rows differ, a bar separates the values."
    return Section("Settings and versions", note, body)


def _shown_name(name: str) -> str:
    return name.removeprefix("config.").removeprefix("environment.")


def _values(values: Sequence[object]) -> str:
    different = list(dict.fromkeys(map(str, values)))
    more = f" | and {len(different) - MAX_VALUES} more" if len(different) > MAX_VALUES else ""
    return " | ".join(different[:MAX_VALUES]) + more
