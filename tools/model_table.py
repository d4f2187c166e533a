"""The table of models: `make sweep` writes docs/models.jsonl (rows of every family) and docs/models.md (the page).

`PYTHONPATH=tests python tools/model_table.py run ROWS [NAME ...]` checks all families, or those of these names, and
writes their rows; rows of other families in the file stay. `python tools/model_table.py page ROWS` prints the page.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("attach", "forward", "gradients", "merged", "exported")
HEADER = """# Models

`make sweep` writes this page; do not edit it. Each row is a small model with random weights of one family of
transformers, timm or torchvision, and LoRA of rank 2 at the targets of a preset, put in by `metalora.attach` and by
PEFT (`metalora.peft`). `metalora.check` runs it forward and backward, merges it, and exports it as plain LoRA that is
loaded into a fresh copy of the model. `metalora doctor MODEL` does the same for your model.

- **right**: attached; the forward with gradients gives the output of the one without, and every target that runs
  changes it; every factor gets a gradient; the merged model gives the live output; the exported LoRA gives the live
  output, in PEFT, or with `metalora.load_lora` where PEFT computes something else.
- **refused**: an error says which target it is, and why.
- **fault**: a crash, or a wrong number.
- **not known**: the model gives nothing to compare, such as no gradient with or without an adapter.

Two outputs are the same if they differ by less than 1e-4 of the update plus 4e-6 of the output, in float64 where the
model runs in it. A preset is left out where it takes the same targets as one before it, or none."""


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for rows."""
    run = [row for row in rows if "not_run" not in row]
    lines = [HEADER, "", *_summary(run), ""]
    for library in dict.fromkeys(row["library"] for row in run):
        of_library = [row for row in run if row["library"] == library]
        lines += [f"## {library}", "", "| family | targets | host | number | " + " | ".join(COLUMNS) + " |"]
        lines += ["|---|---|---|---|" + "---|" * len(COLUMNS)]
        lines += _table(of_library)
        lines.append("")
    faults = [(row, name) for row in run for name in COLUMNS if row.get(name, "").startswith(("fault", "refused"))]
    lines += ["## What is refused, and what is wrong", ""]
    kinds: dict[str, list[str]] = {}
    for row, name in faults:
        kinds.setdefault(f"{name} {row[name]}"[:220], []).append(f"{row['family']} ({row['host']}, {row['targets']})")
    lines += [f"- {kind}: {_names(families)}" for kind, families in kinds.items()] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of how many cells are what."""
    lines = ["| library | families | rows | right | refused | fault | not known |", "|---|---|---|---|---|---|---|"]
    for library in dict.fromkeys(row["library"] for row in rows):
        of_library = [row for row in rows if row["library"] == library]
        words = Counter(_word(row.get(name, "")) for row in of_library for name in COLUMNS)
        families = len({row["family"] for row in of_library})
        counts = " | ".join(str(words[word]) for word in ("right", "refused", "fault", "not known"))
        lines.append(f"| {library} | {families} | {len(of_library)} | {counts} |")
    return lines


def _table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of rows; families whose lines are the same in every column share one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        cells = tuple(_word(row.get(name, "")) for name in COLUMNS)
        groups.setdefault((row["family"], row["targets"], row.get("number", ""), cells), []).append(row["host"])
    return [
        f"| {family} | {targets} | {', '.join(hosts)} | {number} | {' | '.join(cells)} |"
        for (family, targets, number, cells), hosts in groups.items()
    ]


def _word(cell: str) -> str:
    return cell.partition(":")[0]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"


def run(path: Path, names: Sequence[str]) -> None:
    """Check families, and write their rows into a file.

    Args:
        path: The file; rows of other families in it stay.
        names: Names of families or libraries; empty for all.
    """
    import transformers

    from support.model_families import families
    from support.model_sweep import rows_of

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    chosen = [family for family in families() if not names or {family.name, family.library} & {*names}]
    keys = {(family.library, family.name) for family in chosen}
    rows = [row for row in read(path) if (row["library"], row["family"]) not in keys]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
        for family in chosen:
            for row in rows_of(family):
                file.write(json.dumps(row) + "\n")
            file.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


if __name__ == "__main__":
    verb, file, *families_or_libraries = sys.argv[1:]
    if verb == "run":
        run(Path(file), families_or_libraries)
    else:
        print(page(read(Path(file))), end="")
