"""The table of an attack, from its rows alone."""

from attack.judge import FAULTS, FINE
from attack.kills import KILL_FAULTS

HEADS = {
    "mutations": ("damaged files", (*FINE, *FAULTS)),
    "kills": ("kill -9", ("fine", *KILL_FAULTS)),
    "tenants": ("64 tenants of one model", ("right", "forwards per second")),
}


def table(rows) -> str:
    """Markdown: a table for each part, its rows in the order of the rows given, then the faults."""
    lines = []
    for part, (title, columns) in HEADS.items():
        of_part = [row for row in rows if row["part"] == part]
        if of_part:
            lines += [f"| {title} | tried | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
            lines += [_line(row["row"], row["tried"], row["counts"], columns) for row in of_part]
            if part != "tenants":
                lines.append(_line("all", *_sums(of_part, columns), columns))
            lines.append("")
    faults = [f"{row['row']}: {fault}" for row in rows for fault in row["faults"]]
    return "\n".join([*lines, f"{len(faults)} faults", *faults])


def _line(name, tried, counts, columns) -> str:
    return f"| {name} | {tried} | {' | '.join(str(counts.get(column, 0)) for column in columns)} |"


def _sums(rows, columns):
    counts = {column: sum(row["counts"].get(column, 0) for row in rows) for column in columns}
    return sum(row["tried"] for row in rows), counts
