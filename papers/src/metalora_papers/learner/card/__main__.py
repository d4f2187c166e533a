"""The emoji table at 96 pixels within a time budget: `python -m metalora_papers.learner.card`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from metalora_papers.learner.card.archive import unpack
from metalora_papers.learner.card.pack import ARCHIVE, CACHE, PACKAGES

ROWS = Path("runs/learner-emoji-96/rows.jsonl")
SECONDS = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as much of the table as the budget holds; without a card, a dry run with tiny sizes on the CPU.

    Without an archive it takes the drawings in the cache of the user, and the weights of the installed package.

    Args:
        arguments: The command line; None: that of the process.

    Returns:
        The exit code: 0, or 2 if data or a package are missing.
    """
    start = time.monotonic()
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.data is not None or ARCHIVE.is_file():
                _take_from(options.data or ARCHIVE, Path(folder))
            _run(options, start)
        except (ValueError, ModuleNotFoundError) as error:
            print(error, file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m metalora_papers.learner.card", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"file of rows ({ROWS}; of a dry run: a temporary file)")
    parser.add_argument("--budget", type=float, default=SECONDS, help="seconds of the whole command (%(default)g)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes; always so without a card")
    parser.add_argument("--data", type=Path, help=f"archive of `make gpu-emoji-data` ({ARCHIVE}; else those installed)")
    return parser


def _take_from(archive: Path, folder: Path) -> None:
    """Unpack the drawings and the weights, and let this process find them."""
    unpack(archive, folder)
    os.environ["METALORA_CACHE"] = str(folder / CACHE)
    sys.path.insert(0, str(folder / PACKAGES))


def _run(options: argparse.Namespace, start: float) -> None:
    import torch

    from metalora._util.processes import default_device
    from metalora.bench.gpu.budget import Budget
    from metalora.bench.store import RowStore
    from metalora_papers.learner.card.budgeted import planned_runs, run_within

    dry_run = options.dry_run or default_device().type == "cpu"
    default = Path(tempfile.mkdtemp(prefix="metalora-emoji-")) / ROWS.name if dry_run else ROWS
    out = options.out or default
    torch.backends.cudnn.allow_tf32 = False  # it rounds float32 to 10 bits, and the other rows are those of a CPU
    print("dry run: tiny sizes, whose scores mean nothing" if dry_run else f"at most {options.budget:g} seconds")
    rows = run_within(Budget.until(start + options.budget), planned_runs(dry_run), RowStore(out))
    print(f"{len(rows)} new rows in {out}")


if __name__ == "__main__":
    raise SystemExit(main())
