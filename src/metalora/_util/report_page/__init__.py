"""The parts of a report as one HTML file: tables that sort, charts, pictures; no network, nothing but this file."""

from metalora._util.report_page.charts import Band, Series, interval_mark, line_chart, reliability_chart
from metalora._util.report_page.document import Section, check_page, html_page, write_page
from metalora._util.report_page.facts import flat_settings
from metalora._util.report_page.grouped_chart import Group, Mark, grouped_chart
from metalora._util.report_page.markup import Html, joined, paragraph, text
from metalora._util.report_page.tables import (
    Cell,
    Interval,
    Order,
    confusion_table,
    fact_table,
    interval_cells,
    number_cell,
    plain_table,
    sortable_table,
    text_cell,
)

__all__ = [
    "Band",
    "Cell",
    "Group",
    "Html",
    "Interval",
    "Mark",
    "Order",
    "Section",
    "Series",
    "check_page",
    "confusion_table",
    "fact_table",
    "flat_settings",
    "grouped_chart",
    "html_page",
    "interval_cells",
    "interval_mark",
    "joined",
    "line_chart",
    "number_cell",
    "paragraph",
    "plain_table",
    "reliability_chart",
    "sortable_table",
    "text",
    "text_cell",
    "write_page",
]
