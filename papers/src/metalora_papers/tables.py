"""`metalora table ...`: run what is missing, print the tables, draw the plot, and show one use of the adapter."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metalora.bench.store import RowStore
from metalora_papers.config import TEXT_TABLES, TableConfig, TextTableConfig
from metalora_papers.metalora.table import choosing_runs, chosen_rates, plot, report, rows_of, runs
from metalora_papers.metatt import plots as metatt_plots
from metalora_papers.metatt import table as metatt_table
from metalora_papers.report import print_table, write_markdown
from metalora_papers.scheduler import Run, run_all

DEMO = dict(seeds=(0,), steps=800, pretrain_steps=1000)


def run_table(
    table: TableConfig, out: Path, *, workers: int, demo: bool, as_json: bool, rows_file: Path | None = None
) -> None:
    """Run, report and draw; rows that `out` already holds are not run again, and with `rows_file` nothing is run."""
    if demo:
        table = dataclasses.replace(table, **DEMO)
    console = Console(stderr=as_json)
    if rows_file is not None:
        _publish(rows_of(RowStore(rows_file).rows(), table), table, out, console, as_json)
        return
    choosing = choosing_runs(table) if table.lr_grid else []
    chosen = _run(console, "learning rates (validation)", choosing, out, workers)
    wanted = runs(table, _shown(console, chosen_rates(chosen, table.suite)))
    rows = _run(console, f"suite {table.suite}, {table.backbone}", wanted, out, workers)
    _publish(rows, table, out, console, as_json)
    best = next(((run, row) for run, row in zip(wanted, rows, strict=True) if run.method == "metalora-cp"), None)
    if demo and table.suite == "attributes" and best is not None:
        from metalora_papers.metalora.demo import show_use

        run, row = best
        show_use(run, out / "adapters" / f"{row['key']}.safetensors", console)


def run_text_table(
    name: str, table: TextTableConfig, out: Path, *, workers: int, as_json: bool, rows_file: Path | None = None
) -> None:
    """One of MetaTT's comparisons on text (`TEXT_TABLES`); as `run_table`."""
    console = Console(stderr=as_json)
    if rows_file is not None:
        rows = metatt_table.rows_of(name, RowStore(rows_file).rows(), table)
    else:
        choosing = metatt_table.choosing_runs(name, table) if table.lr_grid else []
        chosen = _run(console, "learning rates (validation)", choosing, out, workers)
        wanted = metatt_table.runs(name, table, _shown(console, metatt_table.chosen_rates(chosen)))
        rows = _run(console, TEXT_TABLES[name], wanted, out, workers)
    tables = metatt_table.report(name, rows, table)
    out.mkdir(parents=True, exist_ok=True)
    text = out / f"{name}.md"
    write_markdown(tables, text)
    pictures = metatt_plots.plot(name, rows, table, out)
    if as_json:
        found = {"tables": [dataclasses.asdict(one) for one in tables], "rows": rows, "plots": list(map(str, pictures))}
        print(json.dumps(found, indent=1))
        return
    for one in tables:
        print_table(one, console)
    console.print(f"tables: {text}", *(f"plot: {picture}" for picture in pictures))


def _run(console: Console, label: str, wanted: list[Run], out: Path, workers: int) -> list[dict]:
    """The rows of the runs, with a bar while they are made."""
    if not wanted:
        return []
    with _progress(console, label, wanted) as on_done:
        return run_all(wanted, out, workers=workers, on_done=on_done)


def _shown(console: Console, rates: dict) -> dict:
    """The chosen learning rates, printed if there are any."""
    if rates:
        words = {" on ".join(key) if isinstance(key, tuple) else key: lr for key, lr in rates.items()}
        console.print("learning rates:", words)
    return rates


def _publish(rows: list[dict], table: TableConfig, out: Path, console: Console, as_json: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = report(rows, table)
    data = "sets" if table.suite == "natural" else re.sub(r"[^A-Za-z0-9.]+", "-", table.data)
    name = f"{table.suite}-{data}-{table.backbone}"
    picture, text = out / f"{name}.png", out / f"{name}.md"
    plot(rows, table, picture)
    write_markdown(found.tables, text)
    if as_json:
        print(json.dumps({**found.to_json(), "rows": rows, "plot": str(picture)}, indent=1, allow_nan=False))
        return
    for one in found.tables:
        print_table(one, console)
    console.print(f"plot: {picture}   tables: {text}")


@contextmanager
def _progress(console: Console, label: str, wanted: list[Run]) -> Iterator:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(label, total=len(wanted), note="backbone, then runs")
        yield lambda run: bar.update(task, advance=1, note=f"{run.method}, seed {run.seed}")
