"""Leases: of the processes on all machines that share a folder, one at a time holds a name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora._util.files import create_file
from metalora.bench.processes import Process
from metalora.bench.renewal import RENEWER

SECONDS = 120.0
"""The length of a lease. NFS may show the time of a file a few seconds late; a renewal comes every quarter of it."""
FREE = b"{}"
"""What the file of a lease that was given back holds."""


@dataclass(frozen=True)
class Lease:
    """What the newest file of a name says.

    Attributes:
        number: Its number: every change of a lease makes the file of the next one.
        is_free: Whether the last holder has given it back.
        holder: The process that holds it; None if it is free, or if the file cannot be read.
        renewed: When it was last renewed, by the clock of the file system.
        seconds: How old it becomes before another machine may take it.
    """

    number: int
    is_free: bool
    holder: Process | None
    renewed: float
    seconds: float


class Leases:
    """The leases in a folder that processes of several machines share.

    A lease is a file `NAME.NUMBER.json` with its holder, and the time of the file is that of its last renewal. Taking
    it, taking it over and giving it back each make the file of the next number, by a link, which only one process can
    make. So no step depends on a lock, and none on the clocks of two machines: the time of a file is compared with that
    of a file made just now, which the same file system has set.

    Args:
        folder: The folder; it need not exist yet.
        seconds: How long a lease of another machine is respected without a renewal.
        holder: The process that takes leases; default: this one.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leases = Leases(folder)
        ...     first, second = leases.take("run"), leases.take("run")
        ...     leases.give_back("run")
        ...     first, second, leases.take("run")
        (True, False, True)
    """

    def __init__(self, folder: str | os.PathLike[str], seconds: float = SECONDS, holder: Process | None = None) -> None:
        self.folder = Path(folder)
        self.seconds = seconds
        self._holder = holder
        self._renewer = RENEWER

    def take(self, name: str) -> bool:
        """Take a lease that is free, or whose holder has died; it is renewed in a thread until it is given back.

        Args:
            name: Of letters, digits, '.', '_' and '-'.

        Returns:
            False if a living process holds it, this one included, or was faster.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.last(name)
        if last is not None and self._lives(last):
            return False
        number = 1 if last is None else last.number + 1
        path = self._path(name, number)
        if not create_file(path, self._content()):
            return False
        if self._numbers(name)[-1:] != [number]:  # meanwhile it was taken, given back and taken again
            path.unlink(missing_ok=True)
            return False
        self._remove_up_to(number - 1, name)
        self._renewer.add(self._key(name), path, self.seconds)
        if last is not None and not last.is_free:
            warnings.warn(f"{name}: a stale claim is taken over ({last.holder or 'unreadable'})", stacklevel=3)
        return True

    def give_back(self, name: str, *, for_good: bool = False) -> None:
        """Give a lease back; nothing happens if nobody holds it, or if another process has taken it over.

        Args:
            name: Its name.
            for_good: Nobody needs the lease again; its files are removed.

        Raises:
            ValueError: Another process holds the lease, and this one did not.
            OSError: The folder cannot be written.
        """
        path, last = self._renewer.remove(self._key(name)), self.last(name)
        if path is None:
            if last is not None and last.holder is not None:
                raise ValueError(f"{name} is claimed by {last.holder}, not by this one")
            return
        number = int(path.stem.rpartition(".")[2])
        if last is not None and last.number == number and not for_good:
            create_file(self._path(name, number + 1), FREE)
        self._remove_up_to(number, name)

    def is_held(self, name: str) -> bool:
        """Return whether a living process, this one included, holds a lease."""
        last = self.last(name)
        return last is not None and self._lives(last)

    def last(self, name: str) -> Lease | None:
        """Return the lease as it is; None if nobody has ever held it, or if it was given back for good."""
        while numbers := self._numbers(name):
            with contextlib.suppress(FileNotFoundError):  # its next number was made since, and this one removed
                return self._read(name, numbers[-1])
        return None

    def _read(self, name: str, number: int) -> Lease:
        with self._path(name, number).open("rb") as file:  # NFS asks the server for the time of a file that is opened
            renewed = os.fstat(file.fileno()).st_mtime
            content = file.read()
        values = _parsed(content)
        seconds = values.get("seconds", self.seconds)
        return Lease(number, content == FREE, Process.from_dict(values), renewed, seconds)

    def _lives(self, lease: Lease) -> bool:
        """Return whether the holder of a lease lives: known of this machine, and taken for true while it renews."""
        if lease.is_free:
            return False
        if lease.holder is not None and lease.holder.is_here():
            return not lease.holder.has_ended()
        return self._time() - lease.renewed <= lease.seconds

    def _time(self) -> float:
        """Return the time of the file system, which is not that of this machine if it is on a server."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime

    def _content(self) -> bytes:
        holder = self._holder or Process.this()
        return json.dumps(dataclasses.asdict(holder) | {"seconds": self.seconds}).encode()

    def _numbers(self, name: str) -> list[int]:
        """Return the numbers of the files of a lease, in order."""
        return sorted(self._matching_numbers(name))

    def _matching_numbers(self, name: str) -> Iterator[int]:
        if not self.folder.is_dir():
            return
        for file in os.listdir(self.folder):
            if match := re.fullmatch(rf"{re.escape(name)}\.(\d+)\.json", file):
                yield int(match[1])

    def _remove_up_to(self, number: int, name: str) -> None:
        for old in self._numbers(name):
            if old <= number:
                self._path(name, old).unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.json"

    def _key(self, name: str) -> tuple[str, str]:
        return os.path.realpath(self.folder), name


def _parsed(content: bytes) -> dict[str, Any]:
    """Return the names and values of a file, none if it is damaged."""
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
