"""Run the sections one after another, each within its budget, and write one row for each."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from typing import Any

import torch

from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import describe_error
from metalora.bench.gpu.section import Section
from metalora.bench.store import Row, RowStore, make_row

LEAST_SECONDS = 5.0  # a section is not started with less


def run_sections(sections: Iterable[Section], store: RowStore, seconds: float, dry_run: bool) -> list[Row]:
    """Run all sections; a section that fails or has no time left becomes a row that says so.

    Args:
        sections: What is run.
        store: Gets each row as soon as its section ends.
        seconds: Budget of all sections together.
        dry_run: Whether the shapes are tiny; stands in the rows.

    Returns:
        The rows.
    """
    budget, rows = Budget(seconds), []
    for section in sections:
        start = time.monotonic()
        results = _run_section(section, budget)
        row = make_row(
            key=f"gpu-{section.name.replace(' ', '-')}-{time.time_ns()}",
            suite="gpu",
            config={"section": section.name, "dry_run": dry_run, **section.config},
            seed=0,
            results=results,
            seconds=time.monotonic() - start,
        )
        store.append(row)
        rows.append(row)
        print(_summary(row), flush=True)
    return rows


def _run_section(section: Section, budget: Budget) -> dict[str, Any]:
    if budget.remaining < LEAST_SECONDS:
        return {"skipped": "the time budget of the run is used up"}
    section_budget = budget.part(section.seconds)
    torch.manual_seed(0)
    try:
        with section_budget.enforced():
            return section.run(section_budget)
    except OutOfTime as error:
        return {"skipped": f"{error} ({section.seconds:g} s for this section)"}
    except Exception as error:
        return {"error": describe_error(error)}
    finally:
        gc.collect()  # modules and their hooks form cycles, which would keep the memory of the card
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _summary(row: Row) -> str:
    """One line for the terminal."""
    results, name, seconds = row["results"], row["config"]["section"], row["time"]["seconds"]
    if "skipped" in results:
        return f"{name}: skipped, {results['skipped']}"
    if "error" in results:
        return f"{name}: failed, {results['error']}"
    failed = results.get("failed") or [case["case"] for case in results["cases"] if "error" in case]
    outcome = f"failed: {', '.join(failed)}" if failed else "all passed"
    return f"{name}: {len(results['cases'])} cases in {seconds:.0f} s, {outcome}"
