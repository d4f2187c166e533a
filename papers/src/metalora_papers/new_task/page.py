"""Write the section "Time to a new task" of docs/performance.md from rows: its tables and its figure.

`python -m metalora_papers.new_task.page papers/results/new-task.jsonl`, in the folder of the checkout.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from metalora._util.files import write_atomically
from metalora_papers.new_task.config import NEW_TASK, NewTaskTableConfig
from metalora_papers.new_task.table import NewTaskComparison
from metalora_papers.report import write_markdown
from metalora_papers.rows import Row, read_rows

PAGE, FIGURES = Path("docs/performance.md"), Path("docs/images/papers")
BEGIN, END = "<!-- new-task: made from rows -->", "<!-- new-task: end -->"
ALTERNATIVE = "Accuracy over seconds until a new task predicts, for images and for texts; the tables have the figures."


def section(rows: Sequence[Row]) -> str:
    """Return the figure and the tables of the rows as Markdown.

    Args:
        rows: All rows of a file.
    """
    comparison = NewTaskComparison(NEW_TASK, NewTaskTableConfig())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "section.md"
        write_markdown(comparison.report(comparison.rows_of(rows)).tables, path)
        tables = path.read_text().replace("## ", "### ").strip()
    figure = f"images/papers/{comparison.file_stem}.png"
    return f"![{ALTERNATIVE}]({figure})\n\n{tables}"


def with_section(page: str, text: str) -> str:
    """Return a page with another text between the two marks.

    Args:
        page: The page.
        text: The text.

    Raises:
        ValueError: The page lacks a mark.

    Example:
        >>> with_section(f"above {BEGIN} old {END} below", "new") == f"above {BEGIN}\\n\\nnew\\n\\n{END} below"
        True
    """
    above, begin, rest = page.partition(BEGIN)
    _, end, below = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: expected the marks {BEGIN} and {END}")
    return f"{above}{BEGIN}\n\n{text}\n\n{END}{below}"


def main() -> None:
    """Write the section and the figure."""
    rows = read_rows(Path(sys.argv[1]))
    comparison = NewTaskComparison(NEW_TASK, NewTaskTableConfig())
    write_atomically(PAGE, with_section(PAGE.read_text(), section(rows)).encode())
    comparison.plot(comparison.rows_of(rows), FIGURES)


if __name__ == "__main__":
    main()
