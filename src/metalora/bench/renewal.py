"""A thread that renews what this process holds for as long as it lives."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

RENEWALS_PER_LEASE = 4
Key = tuple[str, str]  # a folder of leases and the name of one


class Renewer:
    """Sets the time of the files of leases again and again, until they are taken out.

    The thread starts with the first lease and ends after the last one. A child process that was forked holds nothing.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[Key, tuple[Path, float]] = {}
        self._is_running = False

    def add(self, key: Key, path: Path, seconds: float) -> None:
        """Renew a file from now on.

        Args:
            key: What `remove` will name.
            path: The file of the lease.
            seconds: The length of the lease.
        """
        with self._changed:
            self._held[key] = path, seconds
            self._changed.notify()
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._renew, name="renewal of leases", daemon=True).start()

    def remove(self, key: Key) -> Path | None:
        """Renew a file no longer, and return it; None if this process does not hold it."""
        with self._changed:
            path, _ = self._held.pop(key, (None, 0.0))
            self._changed.notify()
        return path

    def _renew(self) -> None:
        with self._changed:
            while self._held:
                for path, _ in self._held.values():
                    # Another process may have taken a lease whose renewals it did not see, and removed its file.
                    with contextlib.suppress(OSError):
                        os.utime(path)
                self._changed.wait(min(seconds for _, seconds in self._held.values()) / RENEWALS_PER_LEASE)
            self._is_running = False


RENEWER = Renewer()
"""The one of this process."""
