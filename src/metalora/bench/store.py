"""Result rows: one JSON line per run, in a file that several processes may share."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from metalora._util.files import errors_for_users
from metalora.bench.leases import Leases
from metalora.config import to_dict

PACKAGE = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


class RowStore:
    """A file of result rows, and the claims of the processes that are about to add some.

    The claims are leases in `<path>.claims/` (`metalora.bench.leases`): one of a dead process of this machine is taken
    over at once, and one of another machine after two minutes without a renewal.

    Args:
        path: The file; it need not exist yet.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = RowStore(f"{folder}/rows.jsonl")
        ...     store.append({"key": "a", "results": {"accuracy": 0.5}})
        ...     store.keys()
        {'a'}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._claims = Leases(self.path.with_name(self.path.name + ".claims"))

    def append(self, row: Row) -> None:
        """Add one row as one line, all or nothing, and return once it is on disk.

        If the last line was cut off when an earlier writer stopped, it is kept, with a warning, and the row starts a
        new line.

        Raises:
            ValueError: The row holds NaN or something that JSON cannot hold, or the file cannot be written.
        """
        self._add(row, lambda: True)

    def append_first(self, row: Row, publish: Callable[[], None]) -> bool:
        """Add the row of a finished run, unless it has one: another process may have taken the run over.

        Args:
            row: The row.
            publish: Writes the files that belong to the row. It is called just before the row is added, and while no
                other process can add one.

        Returns:
            Whether the row was added.

        Raises:
            ValueError: As `append`.
        """

        def is_first() -> bool:
            if row["key"] in {found["key"] for found in self._read() if "key" in found}:
                return False
            publish()
            return True

        return self._add(row, is_first)

    def _add(self, row: Row, is_wanted: Callable[[], bool]) -> bool:
        """Add a row if a question, asked while the file is locked, is answered with yes."""
        _check_json(row, "row")
        self.check()
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with errors_for_users(self.path, "the rows in it are unchanged"):
            return self._append(line, is_wanted)

    def check(self) -> None:
        """Check that rows may be added to the file: it has rows, is empty, or is not there.

        Raises:
            ValueError: It is a file of another kind.
        """
        with errors_for_users(self.path, "the file is unchanged"):
            if not self.path.is_file():
                return
            with self.path.open("rb") as file:
                first = next((line for line in file if line.strip()), b"")
        row = _parsed(first)
        # A first line that was cut off is no row yet, but begins as one.
        if first and not (first.startswith(b'{"') if row is None else "key" in row):
            raise ValueError(f"{self.path}: is not a file of rows, and nothing is added to it; name another file")

    def _append(self, line: bytes, is_wanted: Callable[[], bool]) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file releases the lock
            if not is_wanted():
                return False
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # without a seek: O_APPEND writes at the end
                warnings.warn(f"{self.path}: the last line was cut off; a new line is started after it", stacklevel=2)
                line = b"\n" + line
            _write_or_undo(descriptor, line, size)
            return True
        finally:
            os.close(descriptor)

    def rows(self) -> list[Row]:
        """Return all rows in file order, with a warning for each line that is not a row (one that was cut off)."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # several readers at a time, but no writer
            return self._read()

    def _read(self) -> list[Row]:
        """Return the rows of the file, which the caller has locked."""
        rows = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            row = _parsed(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                location = f"{self.path}, line {number}"
                warnings.warn(f"{location}: not a complete row, left out: {line[:60]!r}", stacklevel=2)
        return rows

    def keys(self) -> set[str]:
        """Return the keys of all finished runs."""
        return {row["key"] for row in self.rows() if "key" in row}

    def done(self, key: str) -> bool:
        """Return whether the run has a row."""
        return key in self.keys()

    def claim(self, key: str) -> bool:
        """Reserve a run for this process, which keeps the claim until it releases it or ends.

        Returns:
            False if the run is finished, or if a live process (including this one) has claimed it.

        Raises:
            ValueError: The key cannot be a file name, or the claim cannot be written.
        """
        _check_key(key)
        with errors_for_users(self._claims.folder, "nothing is claimed"):
            if self.done(key) or not self._claims.take(key):
                return False
            if self.done(key):  # its last holder has added the row between the two questions
                self._claims.give_back(key, for_good=True)
                return False
        commit()  # cached now, because the checkout may have another commit when the run ends
        return True

    def is_claimed(self, key: str) -> bool:
        """Return whether a live process (including this one) has claimed a run."""
        with errors_for_users(self._claims.folder, "nothing is claimed"):
            return self._claims.is_held(key)

    def release(self, key: str) -> None:
        """Give a claim back; nothing happens if there is none, or if another process has taken it over.

        Raises:
            ValueError: Another process has claimed the run, and this one had not.
        """
        _check_key(key)
        with errors_for_users(self._claims.folder, "the claim stays"):
            self._claims.give_back(key, for_good=self.done(key))


def _check_key(key: str) -> None:
    """Raise a ValueError for what cannot be a file name: no folders, and not hidden."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", key):
        raise ValueError(f"key {key!r} must be made of letters, digits, '.', '_' and '-'")


def run_key(config: dict[str, Any]) -> str:
    """Return the name of a run: the first 16 digits of the SHA-256 of its configuration as canonical JSON.

    The order of the names does not matter, but the type of a value does (1 is not 1.0). The configuration must hold
    everything that distinguishes two runs, including the seed and the suite.

    Raises:
        ValueError: The configuration holds NaN, or something that JSON cannot hold.

    Example:
        >>> run_key({"seed": 0, "rank": 2}) == run_key({"rank": 2, "seed": 0})
        True
    """
    _check_json(config, "config")
    # Stored rows have keys of this very text, so its form must never change.
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_row(
    *, key: str, suite: str, config: dict[str, Any], seed: int, results: dict[str, Any], seconds: float
) -> Row:
    """Return a finished run as a row: the arguments, the commit, the environment and the time of the end (UTC).

    Args:
        key: Name of the run.
        suite: Name of the experiment that the run belongs to.
        config: The configuration.
        seed: Seed of the random numbers.
        results: The results; None is allowed as a value.
        seconds: Duration of the run.

    Raises:
        ValueError: A value is NaN, or something that JSON cannot hold.
    """
    row = {
        "key": key,
        "suite": suite,
        "config": config,
        "seed": seed,
        "commit": commit(),
        "environment": environment(),
        "time": {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds},
        "results": results,
    }
    _check_json(row, "row")
    return row


def keyed_by_content(config: dict[str, Any], content: Mapping[str, str]) -> str:
    """Return the name of a run that reads files: other contents of the same files are another run.

    Args:
        config: The configuration.
        content: Name of what is read -> its digest; empty if the configuration says all.

    Example:
        >>> keyed_by_content({"seed": 0}, {}) == run_key({"seed": 0})
        True
        >>> keyed_by_content({"seed": 0}, {"data": "5f0c"}) == run_key({"seed": 0})
        False
    """
    return run_key(config | {"content": dict(content)} if content else config)


def finished_row(config: Any, results: dict[str, Any], start: float, content: Mapping[str, str] | None = None) -> Row:
    """Return the row of a run that ends now.

    Args:
        config: The configuration of the run: a dataclass with `suite` and `seed`.
        results: The results.
        start: When the run began, by `time.monotonic`.
        content: Digests of the files that the run has read, by what they are; the row names them.
    """
    described, content = to_dict(config), dict(content or {})
    seconds = round(time.monotonic() - start, 2)
    key = keyed_by_content(described, content)
    row = make_row(key=key, suite=config.suite, config=described, seed=config.seed, results=results, seconds=seconds)
    return row | {"content": content} if content else row


def environment() -> dict[str, Any]:
    """Return what a result may depend on apart from the code: versions, platform, processors, threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "transformers": _version("transformers"),
        "peft": _version("peft"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def commit() -> str:
    """Return the commit of the checkout that holds this package, or the package's version outside of one.

    "-dirty" is added if files of the package differ from the commit or are not in it. Other files do not count, because
    results may be in the same checkout. The first call in a process, or its first claim, decides.
    """
    return _commit_of(PACKAGE) or _version("metalora") or "unknown"


def _commit_of(folder: Path) -> str | None:
    """Return the commit, with "-dirty", of a folder that git tracks; None for any other folder."""
    tracked, head = _git(folder, "ls-files", "."), _git(folder, "rev-parse", "--verify", "HEAD")
    if not tracked or not head:  # a virtual environment inside of some checkout is not tracked by it
        return None
    return head + ("-dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command in the folder; None if it fails or there is no git."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_json(value: Any, path: str) -> None:
    """Raise a ValueError with the dotted path of the first value that would not come back from JSON."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{path} has the name {name!r}; names in a row must be strings")
            _check_json(item, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}; a row holds finite numbers only, None for what does not exist")
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{path} is a {type(value).__name__}; a row holds numbers, strings, lists, dicts and None")


def _parsed(line: bytes) -> Row | None:
    """Return the row of a line, or None if the line is not a row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _write_or_undo(descriptor: int, data: bytes, size: int) -> None:
    """Write all bytes to the end of a file of `size` bytes and sync it; after an error the file is as before."""
    try:
        while data:  # one call may write less than all
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)  # nobody else has written since, because the file is locked
        raise
