"""Run one section within its budget, and make its row: also of one that fails, is cut off or measures NaN."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from typing import Any

import torch

from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import describe_error
from metalora.bench.gpu.section import Results, Section
from metalora.bench.store import Row, make_row

LEAST_SECONDS = 5.0  # a section is not started with less
NO_TIME = "the time budget of the run is used up"


def run_section(section: Section, budget: Budget, dry_run: bool) -> Row:
    """Run a section; one that fails or has no time left becomes a row that says so.

    Args:
        section: What is run.
        budget: That of the whole run.
        dry_run: Whether the shapes are tiny; stands in the row.
    """
    start = time.monotonic()
    results = _results(section, budget)
    return row_of(section, results, time.monotonic() - start, dry_run)


def row_of(section: Section, results: Results, seconds: float, dry_run: bool) -> Row:
    """Return the row of a section.

    Args:
        section: The section.
        results: Its results. Numbers that are not finite become None, and "not_finite" names them.
        seconds: How long it took.
        dry_run: Whether the shapes are tiny.
    """
    missing: list[str] = []
    results = _finite(results, "results", missing)
    if missing:
        results["not_finite"] = missing
    return make_row(
        key=f"gpu-{section.name.replace(' ', '-')}-{time.time_ns()}",
        suite="gpu",
        config={"section": section.name, "dry_run": dry_run, **section.config},
        seed=0,
        results=results,
        seconds=seconds,
    )


def card_works() -> bool:
    """Return False if an error on the card has ended all work of this process on it."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.zeros(1, device="cuda").add_(1).item()
        torch.cuda.empty_cache()  # it refuses after a capture that was not ended
    except Exception:
        return False
    return True


def _results(section: Section, budget: Budget) -> Results:
    if budget.remaining < LEAST_SECONDS:
        return {"skipped": NO_TIME}
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
        with contextlib.suppress(Exception):  # `card_works` asks again
            torch.cuda.empty_cache()


def _finite(value: Any, path: str, missing: list[str]) -> Any:
    """Return a copy with None for each number that a row cannot hold; their paths are added to a list."""
    if isinstance(value, dict):
        return {name: _finite(item, f"{path}.{name}", missing) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item, f"{path}[{index}]", missing) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        missing.append(path)
        return None
    return value


# ---- what a row says -------------------------------------------------------------------------------------------------
def has_failed(row: Row) -> bool:
    """Return True if a row has an error, a law that does not hold, or a number that is not finite."""
    results = row["results"]
    return "error" in results or bool(results.get("failed") or results.get("not_finite"))


def summary(row: Row) -> str:
    """Return one line for the terminal."""
    results, name, seconds = row["results"], row["config"]["section"], row["time"]["seconds"]
    if "skipped" in results:
        return f"{name}: skipped, {results['skipped']}"
    if "error" in results:
        return f"{name}: failed after {seconds:.0f} s, {results['error']}"
    cases = results["cases"]
    failed = results.get("failed") or [case["case"] for case in cases if "error" in case]
    outcome = f"failed: {', '.join(failed)}" if failed else "all passed"
    if "not_finite" in results:
        outcome += f"; not finite: {', '.join(results['not_finite'])}"
    return f"{name}: {len(cases)} cases in {seconds:.0f} s, {outcome}"


def closing_line(rows: list[Row]) -> str:
    """Return the last line for the terminal, which names the sections that were dropped and that failed."""
    dropped = [row["config"]["section"] for row in rows if "skipped" in row["results"]]
    failed = [row["config"]["section"] for row in rows if has_failed(row)]
    parts = [f"{len(rows) - len(dropped)} of {len(rows)} sections ran"]
    parts.append(f"dropped: {', '.join(dropped)}" if dropped else "none was dropped")
    parts.append(f"failed: {', '.join(failed)}" if failed else "none failed")
    return "; ".join(parts)
