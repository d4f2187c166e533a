"""Which process on which machine, so that another one can say whether it still lives."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NUMBERING = "/proc/self/ns/pid"  # a link whose text tells containers with process numbers of their own apart


@dataclass(frozen=True)
class Process:
    """A process and where it runs.

    Attributes:
        host: Name of the machine.
        boot: Identity of the machine's last start; None where the system has none.
        numbering: Identity of the process numbers, which a container has of its own; None where the system has none.
        pid: Number of the process.
        started: When it started, in clock ticks since the boot; None without /proc.
    """

    host: str
    boot: str | None
    numbering: str | None
    pid: int
    started: int | None

    @classmethod
    def this(cls) -> Process:
        """Return the process that asks."""
        pid = os.getpid()
        started = _state_and_start(pid)
        return cls(socket.gethostname(), _boot(), _numbering(), pid, started and started[1])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Process | None:
        """Return the process that a mapping describes; None if it describes none."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not set(names) <= values.keys() or not isinstance(values["pid"], int):
            return None
        return cls(*(values[name] for name in names))

    def is_here(self) -> bool:
        """Return whether it is (or was) a process of this machine since its last start, under the same numbers."""
        return (self.host, self.boot, self.numbering) == (socket.gethostname(), _boot(), _numbering())

    def has_ended(self) -> bool:
        """Return whether a process of this machine has ended."""
        try:
            os.kill(self.pid, 0)  # signal 0 only asks whether the process exists
        except ProcessLookupError:
            return True
        except PermissionError:  # it exists, and is another user's
            pass
        now = _state_and_start(self.pid)
        # A process number may have been given to another process since; a zombie has ended.
        return now is not None and (now[0] == "Z" or now[1] != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _boot() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


def _numbering() -> str | None:
    try:
        return os.readlink(NUMBERING)
    except OSError:
        return None


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """Return a process's state letter and start time in clock ticks; None if there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): "pid (name) state ...", and the name may hold spaces and parentheses. The start time is field 22.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
