"""The parts of a page: what is escaped, what is drawn, and which files it may replace."""

import math
import re

import pytest

from metalora._util.report_page import (
    Band,
    Interval,
    Order,
    Section,
    Series,
    confusion_table,
    fact_table,
    html_page,
    interval_cells,
    line_chart,
    number_cell,
    paragraph,
    reliability_chart,
    sortable_table,
    text_cell,
    write_page,
)
from support.pages import parsed

EVIL = "</td><script>\"'&"


def test_every_text_of_a_page_is_escaped():
    table = sortable_table(EVIL, (EVIL,), [[text_cell(EVIL)]])
    confusion = confusion_table(EVIL, (EVIL, "b"), [[1, 0], [0, 2]])
    lines = line_chart(EVIL, [Series(EVIL, [(0, 1), (1, 2)]), Series("b", [(0, 1)])], EVIL, EVIL)
    chart = reliability_chart(EVIL, [Band(0.0, 0.5, 3, 0.4, 0.5)])
    parts = (table, confusion, lines, chart, fact_table(EVIL, {EVIL: EVIL}), paragraph(EVIL))
    content = html_page(EVIL, EVIL, [Section(EVIL, EVIL, part) for part in parts], EVIL)
    page = parsed(content)
    assert page.count["script"] == 1 and page.title == EVIL
    assert page.table(EVIL) == [[EVIL], [EVIL]]


def test_numbers_are_sorted_by_their_value_and_missing_ones_are_empty():
    content = sortable_table("t", ("name", "n"), [[text_cell("a"), number_cell(1200, "1,200")]], Order(1))
    assert 'data-value="1200">1,200' in content
    assert re.findall('aria-sort="(.*?)"', content) == ["none", "descending"]
    assert 'data-value="">–' in sortable_table("t", ("n", "m"), [[text_cell("a"), number_cell(math.nan, "–")]])


def test_intervals_are_drawn_to_one_scale():
    cells = interval_cells([Interval(0.0, -1.0, 1.0, "a"), Interval(2.0, 1.0, 3.0, "b")])
    ranges = [re.findall(r'class="range" d="M([\d.]+) [\d.]+H([\d.]+)"', cell.content)[0] for cell in cells]
    (low, middle), (same, high) = [tuple(map(float, found)) for found in ranges]
    assert middle == same and middle - low == pytest.approx(high - same)
    assert all('class="zero"' in cell.content for cell in cells)


def test_a_confusion_is_shaded_by_the_share_of_its_row():
    content = confusion_table("t", ("a", "b"), [[9, 1], [0, 0]])
    assert re.findall(r"<td.*?</td>", content) == [
        '<td class="shade-9">9</td>',
        '<td class="shade-1">1</td>',
        "<td>0</td>",
        "<td>0</td>",
    ]


def test_the_points_of_a_reliability_diagram_are_the_shares():
    content = reliability_chart("t", [Band(0.5, 0.6, 4, 0.55, 0.55), Band(0.6, 0.7, 0, 0.0, 0.0)])
    (x, y), *others = re.findall(r'<circle class="series-0 solid" cx="([\d.]+)" cy="([\d.]+)"', content)
    assert not others and "probability 0.55, right 0.55, 4 predictions" in content
    start, end = re.findall(r'axis dashed" d="M([\d.]+ [\d.]+)L([\d.]+ [\d.]+)"', content)[0]
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in (start, end))
    assert (float(x) - x0) / (x1 - x0) == pytest.approx(0.55, abs=1e-3)
    assert (float(y) - y0) / (y1 - y0) == pytest.approx(0.55, abs=1e-3)


def test_a_chart_without_a_point_is_nothing():
    assert line_chart("t", [Series("a", [])], "x", "y") == ""


def test_a_page_replaces_a_page_and_no_other_file(tmp_path):
    path = tmp_path / "a.html"
    write_page(path, "first", "", [])
    write_page(path, "second", "", [])
    assert parsed(path.read_text()).title == "second"
    path.write_text("notes")
    with pytest.raises(ValueError, match="a.html: exists, and is not a report of metalora"):
        write_page(path, "third", "", [])
    assert path.read_text() == "notes"


@pytest.mark.parametrize("name, message", [("none/a.html", "there is no folder"), (".", "is a folder, expected")])
def test_a_page_needs_the_name_of_a_file_in_a_folder(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path / name, "t", "", [])
