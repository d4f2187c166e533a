"""The command line of the GPU bench: `python -m metalora.bench.gpu`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("papers/results/gpu.jsonl")
MINUTES = 7.8  # with the imports it stays below eight


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; without a card, a dry run with tiny shapes on the CPU.

    Args:
        arguments: The command line; None: that of the process.

    Returns:
        The exit code: 0, also if sections were skipped; 1 if a section failed; 2 if a package is missing.

    Raises:
        RuntimeError: The process that runs the sections could not begin.
    """
    start = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("opt_einsum") is None:
        print("opt_einsum is not installed: run `make gpu-wheels` where there is a network", file=sys.stderr)
        return 2
    import torch

    from metalora.bench.gpu.run import closing_line, has_failed
    from metalora.bench.gpu.sections import sections
    from metalora.bench.gpu.supervisor import Supervisor
    from metalora.bench.gpu.worker import Task

    dry_run = options.dry_run or not torch.cuda.is_available()
    out = options.out or (_temporary_file() if dry_run else RESULTS)
    if dry_run and _is_in_results(out):
        parser.error(f"--out {out}: rows of a dry run do not belong among the results of the papers")
    names = [section.name for section in sections(dry_run) if section.name.startswith(options.only)]
    if not names:
        parser.error(f"--only {options.only}: no section begins so")
    if dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # for the process of the sections, which imports triton
    print("dry run: tiny shapes, whose times mean nothing" if dry_run else f"at most {options.minutes:g} minutes")
    rows = Supervisor(Task(sections, dry_run, names, out, start + 60 * options.minutes)).run()
    print(f"rows in {out}: {closing_line(rows)}")
    return int(any(map(has_failed, rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m metalora.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"file of rows ({RESULTS}; of a dry run: a temporary file)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes; always so without a card")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time budget of the run (%(default)s)")
    parser.add_argument("--only", default="", help="run only the sections whose name begins with this text")
    return parser


def _temporary_file() -> Path:
    return Path(tempfile.mkdtemp(prefix="metalora-gpu-")) / "gpu.jsonl"


def _is_in_results(path: Path) -> bool:
    folder = path.resolve().parent
    return (folder.parent.name, folder.name) == ("papers", "results")


if __name__ == "__main__":
    raise SystemExit(main())
