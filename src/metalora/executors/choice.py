"""From its configuration to an executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from metalora.executors.config import ExecutorConfig
from metalora.executors.executor import Executor, ThisProcess


@contextmanager
def executor_of(config: ExecutorConfig, folder: Path) -> Iterator[Executor]:
    """Give the executor of a configuration, and stop what it still executes at the end.

    Args:
        config: Which one, and its settings.
        folder: The folder of the results; jobs of Slurm have their logs in its folder `slurm`.

    Raises:
        ValueError: There is no Slurm here.
        ModuleNotFoundError: Ray, or submitit for Slurm, is not installed; the message names the extra.
    """
    with closing(_executor_of(config, folder)) as executor:
        yield executor


def _executor_of(config: ExecutorConfig, folder: Path) -> Executor:
    """Return the executor; each module is imported only if it is used."""
    if config.executor == "ray":
        from metalora.executors.on_ray import OnRay

        return OnRay(config.workers, config.ray)
    if config.executor == "slurm":
        from metalora.executors.on_slurm import OnSlurm

        return OnSlurm(config.workers, folder / "slurm", config.slurm)
    if config.workers == 1:
        return ThisProcess()
    from metalora.executors.local import LocalProcesses

    return LocalProcesses(config.workers)
