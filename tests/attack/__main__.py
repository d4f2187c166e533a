"""`make attack`: damaged files, killed writers and many tenants; the rows, the table, and exit code 1 for a fault."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from attack import report
from attack.judge import FAULTS
from attack.kills import KILL_FAULTS, kill_all
from attack.kinds import KINDS
from attack.workers import attack_all
from metalora.bench.store import RowStore, commit, environment
from support.tenants import served_outputs

FAST = {"mutations": 110, "kills": 10, "trainings": 1, "forwards": 400}
FULL = {"mutations": 4200, "kills": 460, "trainings": 12, "forwards": 10_000}


def shares(total):
    """How many mutations each kind gets: at least one, and in all at least the total."""
    whole = sum(kind.share for kind in KINDS)
    return {kind.name: max(1, -(-total * kind.share // whole)) for kind in KINDS}


def part_row(part, row, counts, faults):
    return {"part": part, "row": row, "tried": counts.total(), "counts": dict(counts), "faults": faults}


def mutation_rows(total, workers, seed):
    """A row for each kind of file."""
    cases = [(name, number) for name, count in shares(total).items() for number in range(count)]
    verdicts = {kind.name: Counter() for kind in KINDS}
    faults = {kind.name: [] for kind in KINDS}
    for name, number, mutation, verdict, words in attack_all(cases, workers, seed):
        verdicts[name][verdict] += 1
        if verdict in FAULTS:
            faults[name].append({"number": number, "mutation": mutation, "verdict": verdict, "message": words[:300]})
    for name, counts in verdicts.items():
        yield {
            "part": "mutations",
            "row": name,
            "tried": counts.total(),
            "counts": dict(counts),
            "faults": faults[name],
        }


def kill_rows(kills, trainings, workers, seed):
    """A row for each kind of what is saved, and one for trainings."""
    counts, faults = {}, {}
    for row, wrong in kill_all(kills, trainings, workers, seed):
        fault = next((name for name in KILL_FAULTS if wrong.startswith(name)), "fine")
        counts.setdefault(row, Counter())[fault] += 1
        faults.setdefault(row, []).extend([{"message": wrong[:300]}] if wrong else [])
    for row in sorted(counts):
        yield {
            "part": "kills",
            "row": row,
            "tried": counts[row].total(),
            "counts": dict(counts[row]),
            "faults": faults[row],
        }


def tenant_rows(forwards):
    """A row for one thread, one for threads and one for tasks."""
    for name, right, speed in served_outputs(forwards):
        wrong = [{"message": f"{forwards - right} outputs are not those of their tenants"}] if right != forwards else []
        counts = {"right": right, "forwards per second": round(speed)}
        yield {"part": "tenants", "row": name, "tried": forwards, "counts": counts, "faults": wrong}


def rows_of(options):
    """All rows, as they are made."""
    torch.set_num_threads(1)
    yield from tenant_rows(options.forwards)  # first: alone on the machine, for the speed
    yield from kill_rows(options.kills, options.trainings, options.workers, options.seed)
    yield from mutation_rows(options.mutations, options.workers, options.seed)


def parse_options(arguments):
    parser = argparse.ArgumentParser(prog="attack", description=__doc__)
    for name, count in FULL.items():
        parser.add_argument(f"--{name}", type=int, default=None, help=f"{count} by default, {FAST[name]} with --fast")
    parser.add_argument("--fast", action="store_true", help="a short attack")
    parser.add_argument("--workers", type=int, default=max(1, min(4, os.cpu_count() or 1)), help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="append the rows to this file")
    parser.add_argument("--table", type=Path, default=None, help="only print the table of the rows in this file")
    options = parser.parse_args(arguments)
    for name, count in (FAST if options.fast else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, count)
    if options.forwards % 8:
        parser.error(f"--forwards is {options.forwards}, expected a multiple of 8: the threads have equal shares")
    return options


def main(arguments=None) -> int:
    """Attack, print the table, and return 1 if anything is a fault, else 0."""
    options = parse_options(arguments)
    if options.table is not None:
        rows = RowStore(options.table).rows()
    else:
        with tempfile.TemporaryDirectory() as folder:
            store = RowStore(options.out or Path(folder) / "rows.jsonl")
            rows = list(_stored_rows(store, options))
    print(report.table(rows))
    return int(any(row["faults"] for row in rows))


def _stored_rows(store, options):
    start = time.monotonic()
    shared = {"seed": options.seed, "commit": commit(), "environment": environment()}
    for row in rows_of(options):
        row |= {"key": f"{row['part']}: {row['row']}"} | shared | {"seconds": round(time.monotonic() - start, 1)}
        store.append(row)
        print(json.dumps({key: row[key] for key in ("part", "row", "tried", "counts", "seconds")}), file=sys.stderr)
        yield row


if __name__ == "__main__":
    sys.exit(main())
