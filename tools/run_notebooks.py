"""Run notebooks and write what they print into them: `python tools/run_notebooks.py docs/notebooks/*.ipynb`.

Warnings and progress bars (standard error) are left out: they name folders of the machine. It needs nbclient and
ipykernel.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT = 600  # seconds of a cell


def executed(path: Path) -> Any:
    """Return a notebook after a run of all its cells in an empty folder.

    Args:
        path: The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised an error.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # when each cell was run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Run the notebooks that the command line names."""
    import nbformat

    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
        print(f"{name}: run")


if __name__ == "__main__":
    main()
