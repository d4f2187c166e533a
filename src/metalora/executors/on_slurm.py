"""Work as jobs of Slurm, which submitit submits."""

from __future__ import annotations

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from metalora.executors.config import SlurmConfig
from metalora.executors.executor import Ended, Work

WAIT = 0.5  # seconds between looks for the results of jobs


class OnSlurm:
    """Up to `workers` jobs of Slurm at a time, queued or running, with one task each.

    Args:
        workers: Number of jobs that are submitted at a time.
        folder: Where the scripts, the logs and the results of the jobs go; every machine must see it.
        config: What a job asks for.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: There is no Slurm here.
    """

    def __init__(self, workers: int, folder: Path, config: SlurmConfig):
        import submitit

        if config.cluster == "slurm" and shutil.which("srun") is None:
            raise ValueError("--executor slurm: there is no Slurm here; --slurm.cluster local tries it without")
        self.workers, self.folder, self.config = workers, folder.absolute(), config
        self._submitit: Any = submitit
        self._running: list[tuple[Any, Work]] = []

    @cached_property
    def _submitter(self) -> Any:
        """What submits the jobs; it is made with the first one, since it writes to the folder."""
        config = self.config
        submitter = self._submitit.AutoExecutor(folder=self.folder, cluster=config.cluster)
        submitter.update_parameters(
            name="metalora",
            timeout_min=config.minutes,
            mem_gb=config.memory_gb,
            cpus_per_task=config.cpus,
            gpus_per_node=config.gpus or None,
            slurm_partition=config.partition or None,
            slurm_account=config.account or None,
            slurm_setup=[f"export OMP_NUM_THREADS={config.cpus}"],
        )
        return submitter

    def start(self, work: Work) -> None:
        """Submit a job."""
        self._running.append((self._submitter.submit(work), work))

    def wait(self) -> list[Ended]:
        """Wait until a job has ended."""
        while not (ended := [(job, work) for job, work in self._running if job.done()]):
            time.sleep(WAIT)
        self._running = [pair for pair in self._running if pair not in ended]
        return [self._ended(job, work) for job, work in ended]

    def _ended(self, job: Any, work: Work) -> Ended:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return Ended(work, job.result())
        except (UncompletedJobError, FailedJobError):
            return Ended(work, death=f"job {job.job_id} ended without a result ({job.state}), see {job.paths.stderr}")

    def close(self) -> None:
        """Cancel the jobs."""
        for job, _ in self._running:
            job.cancel(check=False)
        self._running.clear()
