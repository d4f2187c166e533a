"""`metalora serve` as a process: start, figures of the operating system, stop, kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from serving_load.connections import Address

HOST = "127.0.0.1"
MOST_SECONDS_TO_START = 120


class ServedProcess:
    """A process that serves a learner, and its children.

    Args:
        learner: Folder of the learner.
        store: Path of the store.
        flags: Further flags of `metalora serve`.
    """

    def __init__(self, learner: Path, store: Path, flags: list[str]):
        self.address = Address(HOST, free_port())
        self._log = store.with_suffix(".log")
        self._command = [sys.executable, "-m", "metalora.cli.main", "serve", str(learner), "--store", str(store)]
        self._command += ["--host", HOST, "--port", str(self.address.port), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start the process, wait until it answers, and return the seconds that this took."""
        begun = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - begun > MOST_SECONDS_TO_START:
                raise RuntimeError(f"the service did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def _is_ready(self) -> bool:
        url = f"http://{HOST}:{self.address.port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def request(self, method: str, path: str, key: str, body: object = None) -> Any:
        """Send one request and return the JSON of its reply."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        url = f"http://{HOST}:{self.address.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, content, headers, method=method), timeout=120) as reply:
            return json.loads(reply.read() or b"null")

    def stop(self) -> None:
        """Ask the process to stop, and wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the process and its children at once, as kill -9."""
        assert self._process is not None
        for process in reversed(self._processes()):
            process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process and its children have used."""
        times = [process.cpu_times() for process in self._processes()]
        return sum(time.user + time.system for time in times)

    def rss_mb(self) -> float:
        """Return the memory that the process and its children hold, in megabytes."""
        return sum(process.memory_info().rss for process in self._processes()) / 1e6

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def __enter__(self) -> "ServedProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def own_cpu_seconds() -> float:
    """Return the CPU time that this process, the client, has used."""
    times = os.times()
    return times.user + times.system
