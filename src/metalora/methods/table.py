"""The table of all methods, docs/methods.md."""

from metalora.methods.method import Method
from metalora.methods.registry import METHODS

INTRODUCTION = """# Methods

`metalora methods --markdown > docs/methods.md` writes this page; do not edit it.

- count: learned numbers of one network, in I (in), O (out), K (kernel size), R (rank), N (experts), L (layers),
  M (projections), H (heads), J (head size), T (tasks), and i1, o1, ... (digits of in and out)
- export rank: rank of the exact LoRA pair at a target; none: no LoRA equals the method, since
  there is an activation between two maps, or since the outputs are scaled, which has full rank
- one for each: what has a copy of the factors; for each factor if they differ
- published counts, reproduced or not: `tests/golden/counts.json`
"""
COLUMNS = ("method", "formula", "count", "export rank", "one for each", "scale", "source")


def methods_table() -> str:
    """The Markdown page of all methods: a table with a row per method, and their notes.

    Example:
        >>> methods_table().splitlines()[0]
        '# Methods'
    """
    lines = [INTRODUCTION, _row(COLUMNS), "|---" * len(COLUMNS) + "|"]
    lines += [_row(_cells(method)) for method in METHODS.values()]
    lines.append("")
    lines += [f"- `{method.name}`: {method.notes}" for method in METHODS.values() if method.notes]
    return "\n".join(lines) + "\n"


def _cells(method: Method) -> tuple[str, ...]:
    return (
        f"`{method.name}`",
        f"`{method.formula}`",
        f"`{method.count}`",
        f"`{method.export}`",
        _copies(method),
        method.scale,
        method.source,
    )


def _row(cells: tuple[str, ...]) -> str:
    escaped = [" ".join(cell.split()).replace("|", r"\|") for cell in cells]  # |W| would end a cell
    return f"| {' | '.join(escaped)} |"


def _copies(method: Method) -> str:
    """What has a copy of the factors, such as "target", "layer and proj" or "model"."""
    if isinstance(method.replicated_over, str):
        return _words(method.replicated_over)
    return ", ".join(f"{factor}: {_words(coordinates)}" for factor, coordinates in method.replicated_over.items())


def _words(coordinates: str) -> str:
    return " and ".join(coordinates.split()) or "model"  # no coordinate: one copy for all targets
