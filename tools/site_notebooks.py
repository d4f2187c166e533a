"""The notebooks of docs/notebooks as pages of the site."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def page_of(path: Path) -> str:
    """Return a notebook as Markdown: its texts, its code, and what the code printed or drew."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = [part for cell in notebook["cells"] for part in _parts_of(cell)]
    return "\n\n".join([*parts, f"The notebook itself: [{path.name}]({path.name})"]) + "\n"


def list_of(paths: Sequence[Path]) -> str:
    """Return a page that links to the pages of notebooks."""
    lines = [f"- [{path.stem.replace('-', ' ')}]({path.stem}.md)" for path in paths]
    return "\n".join(["# Notebooks", "", "Each of them runs from top to bottom in Jupyter.", "", *lines]) + "\n"


def _parts_of(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] != "code":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![output of the code above](data:image/png;base64,{''.join(data['image/png']).strip()})"
        elif printed := "".join(output.get("text", data.get("text/plain", ""))).strip():
            yield f"```text\n{printed}\n```"
