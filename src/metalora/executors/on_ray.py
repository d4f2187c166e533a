"""Work as tasks of Ray: on this machine, or on a cluster whose machines share a folder."""

from __future__ import annotations

import logging
import os
from typing import Any

from metalora._util.shown import cut
from metalora.executors.config import RayConfig
from metalora.executors.executor import Ended, Work

LONGEST = 400  # characters of what Ray says about an error


class OnRay:
    """Up to `workers` tasks of Ray at a time, of one core each.

    Args:
        workers: Number of tasks that are started at a time.
        config: The cluster, and what a task asks for.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """

    def __init__(self, workers: int, config: RayConfig):
        import ray

        self.workers = workers
        self._ray: Any = ray
        self._has_started_ray = not ray.is_initialized()
        if self._has_started_ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # An empty address is that of RAY_ADDRESS, or of a cluster that runs here; otherwise Ray starts one.
            quietly = {"log_to_driver": False, "logging_level": logging.WARNING, "include_dashboard": False}
            ray.init(address=config.address or None, **quietly)
        # A run that died is reported, not repeated: `max_retries` would hide that it needs too much memory.
        self._task = ray.remote(num_cpus=1, num_gpus=config.gpus, max_retries=0)(_do)
        self._running: dict[Any, Work] = {}

    def start(self, work: Work) -> None:
        """Submit a task."""
        self._running[self._task.remote(work)] = work

    def wait(self) -> list[Ended]:
        """Wait until a task has ended."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1)
        return [self._ended(task) for task in ended]

    def _ended(self, task: Any) -> Ended:
        work = self._running.pop(task)
        try:
            return Ended(work, self._ray.get(task))
        except self._ray.exceptions.RayError as error:
            said = cut(" ".join(str(error).split()), LONGEST)
            return Ended(work, death=f"Ray lost its process ({type(error).__name__}: {said})")

    def close(self) -> None:
        """Cancel the tasks, and end Ray if it was started here."""
        for task in self._running:
            self._ray.cancel(task)
        self._running.clear()
        if self._has_started_ray:
            self._ray.shutdown()


def _do(work: Work) -> str | None:
    return work()
