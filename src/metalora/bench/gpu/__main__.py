"""The command line of the GPU bench: `python -m metalora.bench.gpu`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("papers/results/gpu.jsonl")
MINUTES = 7.5  # with the imports it stays below eight


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; without a card, a dry run with tiny shapes on the CPU.

    Args:
        arguments: The command line; None: that of the process.

    Returns:
        The exit code: 0, also if sections were skipped; 1 if a section failed; 2 if a package is missing.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("opt_einsum") is None:
        print("opt_einsum is not installed: run `make gpu-wheels` where there is a network", file=sys.stderr)
        return 2
    import torch

    from metalora.bench.gpu.run import run_sections
    from metalora.bench.gpu.sections import sections
    from metalora.bench.store import RowStore

    dry_run = options.dry_run or not torch.cuda.is_available()
    out = options.out or (_temporary_file() if dry_run else RESULTS)
    if dry_run and _is_in_results(out):
        parser.error(f"--out {out}: rows of a dry run do not belong among the results of the papers")
    if dry_run:
        print("dry run: tiny shapes, whose times mean nothing" + _no_card(torch.cuda.is_available()))
    else:
        print(f"{torch.cuda.get_device_name()}, at most {options.minutes:g} minutes")
    chosen = [section for section in sections(dry_run) if section.name.startswith(options.only)]
    rows = run_sections(chosen, RowStore(out), 60 * options.minutes, dry_run)
    print(f"rows in {out}")
    return int(any(_has_failed(row["results"]) for row in rows))


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


def _no_card(has_card: bool) -> str:
    return "" if has_card else "; there is no CUDA card"


def _has_failed(results: dict[str, object]) -> bool:
    return "error" in results or bool(results.get("failed"))


if __name__ == "__main__":
    raise SystemExit(main())
