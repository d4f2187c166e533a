"""What the files hold that a run names by their path: other labels or pictures under the same path are another run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from metalora_papers.runs import Run

DIGITS = 16
FOLDER = "folder:"
CHUNK = 1 << 20  # bytes that are read at once


def content_of(run: Run) -> dict[str, str]:
    """Return a digest of what a run reads from paths that its user has named; empty if it names none.

    The keys are "data", "model" and "extractor". Data of a package and names on the Hub are known by their name.

    Args:
        run: The configuration.

    Example:
        >>> from metalora_papers.config import RunConfig
        >>> content_of(RunConfig(data="digits"))
        {}
    """
    condition = None if run.adapter is None else run.adapter.condition
    extractor = "" if condition is None else condition.extractor or ""
    paths = {
        "data": _data_path(getattr(run, "data", ""), run.data_root),
        "model": _model_path(getattr(run, "model", "")),
        "extractor": _model_path(extractor),
    }
    return {name: path_digest(path) for name, path in paths.items() if path is not None and path.exists()}


def _data_path(data: str, root: str | None) -> Path | None:
    """Return where the data are; None for data of a package, of the cache or of the Hub."""
    if data.startswith(FOLDER):
        return Path(root or "", data.removeprefix(FOLDER))
    if data.startswith("hub:"):  # `root` is the cache of `datasets` then
        return None
    if root is None and data == "fashion-mnist":
        root = os.environ.get("METALORA_DATA")
    if root is None:
        return None
    inner = Path(root) / "fashion-mnist"
    return inner if data == "fashion-mnist" and inner.is_dir() else Path(root)


def _model_path(name: str) -> Path | None:
    """Return the folder or the file of weights in the name of a model; None if it has none."""
    if name.startswith("hf:"):
        return Path(name.removeprefix("hf:"))
    _, at, checkpoint = name.partition("@")
    return Path(checkpoint) if at else None


def path_digest(path: Path) -> str:
    """Return a digest of a file, or of the names and the bytes of all files in a folder.

    Args:
        path: The file or the folder.
    """
    if path.is_file():
        return _file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(_files(path)):
        digest.update(f"{file.relative_to(path)}\0{_file_digest(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


def digest_of_root(root: str | Path | None) -> str:
    """Return the digest of the folder `data_root`; empty if there is none, or if it does not exist."""
    return path_digest(Path(root)) if root is not None and Path(root).exists() else ""


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder, through links to folders too, but through each folder once."""
    seen = set()
    for above, folders, names in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(above)
        if real_path in seen:
            folders.clear()
            continue
        seen.add(real_path)
        yield from (file for file in (Path(above, name) for name in names) if file.is_file())


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of_version(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@cache
def _digest_of_version(path: Path, size: int, modified: int, changed: int, number: int) -> str:
    """Return the digest of a file; a file of another size, time or number is read again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:DIGITS]
