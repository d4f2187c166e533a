"""Tables, figures and pages that a command makes anew each time: only what it made itself is replaced."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metalora._util.files import errors_for_users, replace_file
from metalora_papers.content import path_digest

RECORD = ".made-by-metalora.json"  # name of a file -> digest of what the command wrote


@contextmanager
def made_files(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to fill, whose files then stand in a folder that holds other files too.

    Args:
        folder: Where the files shall stand; it is made if it does not exist.
        overwrite: Whether to replace files that are not as such a command has left them.

    Yields:
        The temporary folder.

    Raises:
        ValueError: A file of that name is another one, or a file could not be written. Then none is replaced.
    """
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        names = sorted(path.name for path in Path(temporary).iterdir())
        with errors_for_users(folder, "the files that are there are unchanged"):
            folder.mkdir(parents=True, exist_ok=True)
            record = _record(folder)
            if not overwrite:
                _check(folder, names, record)
            for name in names:
                replace_file(folder / name, (Path(temporary) / name).read_bytes())
            made = {name: path_digest(folder / name) for name in names}
            replace_file(folder / RECORD, json.dumps(record | made, indent=1, sort_keys=True).encode())


def _check(folder: Path, names: list[str], record: dict[str, str]) -> None:
    for name in names:
        path = folder / name
        if path.exists() and record.get(name) != path_digest(path):
            raise ValueError(
                f"{path}: exists already, and is not as this command has written it; --overwrite replaces it"
            )


def _record(folder: Path) -> dict[str, str]:
    """Return what is recorded of a folder; nothing if there is no record, or one that cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
