"""`metalora-papers table ...`: run what is missing, print the tables and draw the figures."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metalora._util.files import check_file
from metalora._util.progress import progress_lines, shows_bars
from metalora._util.report_page import check_page
from metalora.executors.choice import executor_of
from metalora.executors.config import ExecutorConfig
from metalora.executors.executor import Executor
from metalora_papers.comparison import HasRows, Presentation, RateKey, load_comparison
from metalora_papers.finished import say_finished
from metalora_papers.html_report import write_html
from metalora_papers.made_files import made_files
from metalora_papers.report import print_table, write_markdown
from metalora_papers.rows import Row, read_rows
from metalora_papers.runs import Run, Table
from metalora_papers.scheduler import run_all


def run_table(
    name: str,
    table: Table,
    out: Path,
    *,
    executor: ExecutorConfig,
    as_json: bool,
    rows_file: Path | None = None,
    html: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Run a comparison, print its tables and draw its figures.

    Args:
        name: The name of the comparison, such as "metalora" or "metatt-2".
        table: Its settings.
        out: Folder of rows, adapters, tables and figures; rows that it already holds are not run again.
        executor: What executes the runs.
        as_json: Print one JSON object instead of tables.
        rows_file: Report from this file of rows; nothing is run.
        html: A file for the same as a page.
        overwrite: Replace tables and figures in the folder that no such command has made.

    Raises:
        ValueError: Settings that cannot work, or a file without a row of this comparison.
        WorkFailed: Some runs failed, after all others are done.
    """
    check_file(out / "rows.jsonl", makes_folder=True)
    if html is not None:
        check_page(html)
    comparison = load_comparison(name, table)
    console = Console(stderr=as_json)
    publish = functools.partial(
        _publish, comparison, out=out, console=console, as_json=as_json, html=html, overwrite=overwrite
    )
    if rows_file is not None:
        publish(_rows_of_file(comparison, rows_file))
        return
    with executor_of(executor, out) as running:
        choosing_rows = _run(console, "learning rates (validation)", comparison.choosing_runs(), out, running)
        rates = comparison.chosen_rates(choosing_rows)
        _show_rates(console, rates)
        rows = _run(console, comparison.title, comparison.runs(rates), out, running)
    publish(rows)


def show_figure_13(
    rows_file: Path, out: Path, *, as_json: bool, html: Path | None = None, overwrite: bool = False
) -> None:
    """Print Table 18 of MetaTT and draw its Fig. 13 from rows of `train`.

    Args:
        rows_file: The rows.
        out: Folder of the table and the figure.
        as_json: Print one JSON object instead of the table.
        html: A file for the same as a page.
        overwrite: Replace a table and a figure in the folder that no such command has made.

    Raises:
        ValueError: No row of a run on a language model, or rows that cannot be compared.
    """
    from metalora_papers.metatt.figure_13 import Figure13

    check_file(out / "rows.jsonl", makes_folder=True)
    if html is not None:
        check_page(html)
    figure = Figure13()
    rows = _rows_of_file(figure, rows_file)
    _publish(figure, rows, out=out, console=Console(stderr=as_json), as_json=as_json, html=html, overwrite=overwrite)


def _rows_of_file(comparison: HasRows, path: Path) -> list[Row]:
    """Return the rows of a comparison in a file; ValueError if there is none, or one lacks what its suite records."""
    rows = read_rows(path)
    try:
        return comparison.rows_of(rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a row of this suite has another form ({type(error).__name__}: {error})") from None
    except ValueError as error:
        suites = ", ".join(sorted({row["suite"] for row in rows}))
        raise ValueError(f"{path}: {error} (it has rows of {suites})") from None


def _run(console: Console, label: str, runs: Sequence[Run], out: Path, executor: Executor) -> list[Row]:
    """Return the rows of the runs, with a progress bar while they are executed."""
    if not runs:
        return []
    say_finished(runs, out)
    with _progress(console, label, len(runs)) as on_done:
        return run_all(runs, out, executor=executor, on_done=on_done)


def _show_rates(console: Console, rates: Mapping[RateKey, float]) -> None:
    if rates:
        console.print("chosen on the validation split:", {" on ".join(key): rate for key, rate in rates.items()})


def _publish(
    comparison: Presentation,
    rows: Sequence[Row],
    *,
    out: Path,
    console: Console,
    as_json: bool,
    html: Path | None,
    overwrite: bool,
) -> None:
    """Write the tables and figures of the rows, and print the tables."""
    report = comparison.report(rows)
    text = out / f"{comparison.file_stem}.md"
    with made_files(out, overwrite) as folder:
        plots = [out / path.name for path in comparison.plot(rows, folder)]
        write_markdown(report.tables, folder / text.name)
    if html is not None:
        write_html(report, rows, plots, html, comparison.file_stem)
    if as_json:
        content = {**report.to_json(), "rows": rows, "plots": [str(path) for path in plots]}
        print(json.dumps(content, indent=1, allow_nan=False))
        return
    for table in report.tables:
        print_table(table, console)
    console.print(f"tables: {text}", *(f"plot: {path}" for path in plots), *([f"page: {html}"] if html else []))


@contextmanager
def _progress(console: Console, label: str, total: int) -> Iterator[Callable[[Run], None]]:
    """Show a progress bar, or lines where there is no terminal; yields what is called with every run that is done."""
    if not shows_bars(console.is_terminal, console.is_dumb_terminal, console.is_jupyter):
        yield _line_on_done(progress_lines(total, label))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(label, total=total, note="data and models, then runs")

        def on_done(run: Run) -> None:
            bar.update(task, advance=1, note=f"{run.method}, seed {run.seed}")

        yield on_done


def _line_on_done(advance: Callable[..., None]) -> Callable[[Run], None]:
    """Return what counts the runs that are done for the lines of `progress_lines`."""
    numbers = itertools.count(1)
    return lambda run: advance(next(numbers), f"{run.method}, seed {run.seed}")
