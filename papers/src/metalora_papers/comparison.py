"""A comparison: one table or figure of a paper, with its runs and its report. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from metalora_papers.config import TEXT_TABLES
from metalora_papers.learner.config import LEARNER_TABLES
from metalora_papers.new_task.config import NEW_TASK
from metalora_papers.rows import Row
from metalora_papers.runs import Run, Table

if TYPE_CHECKING:
    from metalora_papers.report import Report

RateKey = tuple[str, ...]
"""What a learning rate is chosen for: a method, or a row of a table and the tasks that are trained together."""


class Presentation(Protocol):
    """What rows say as tables and figures; nothing but the rows is needed."""

    @property
    def file_stem(self) -> str:
        """Name of the written files, without folder and suffix."""

    def report(self, rows: Sequence[Row]) -> Report:
        """Return the tables, and the paired comparisons if there are two seeds or more."""

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the figures and return their PNG files."""


class HasRows(Protocol):
    """What finds its own rows among those of a file."""

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this comparison; ValueError if there is none."""


class Comparison(Presentation, HasRows, Protocol):
    """One table or figure: which runs it takes, and what their rows say."""

    @property
    def title(self) -> str:
        """A few words for the progress bar."""

    def runs(self, rates: Mapping[RateKey, float]) -> Sequence[Run]:
        """Return every run, seeds outermost, so that an interrupted table has complete seeds first.

        Args:
            rates: Learning rates that validation chose; a run that is not in it has the rate of the table.
        """

    def choosing_runs(self) -> Sequence[Run]:
        """Return the runs on the validation split from which learning rates are chosen; none without a grid."""

    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return the learning rates with the best scores on the validation split."""

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this comparison among all rows of a file.

        If the file holds a choice on the validation split, rows at a rate that was not chosen are left out.

        Raises:
            ValueError: There is no such row.
        """


_TABLE_ONE = "metalora_papers.metalora.table_one:TableOne"
_TEXT = "metalora_papers.metatt.table:TextComparison"
_LEARNER = "metalora_papers.learner.table:LearnerComparison"
COMPARISONS = {
    "metalora": "metalora_papers.metalora.table:ImageComparison",
    "metalora-1": _TABLE_ONE,
    "metalora-continuation": "metalora_papers.metalora.continuation_table:ContinuationComparison",
    "tenslora-vision": "metalora_papers.tenslora.vision_table:VisionComparison",
    NEW_TASK: "metalora_papers.new_task.table:NewTaskComparison",
    **dict.fromkeys(TEXT_TABLES, _TEXT),
    **dict.fromkeys(LEARNER_TABLES, _LEARNER),
}


def load_comparison(name: str, table: Table) -> Comparison:
    """Return the comparison of that name, such as "metalora" or "metatt-2", with the settings of `table`."""
    module, _, cls = COMPARISONS[name].partition(":")
    comparison: Comparison = getattr(importlib.import_module(module), cls)(name, table)
    return comparison
