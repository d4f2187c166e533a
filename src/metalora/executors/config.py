"""Which executor, and its settings; imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import Range
from metalora.config import Configuration


@dataclass(frozen=True)
class RayConfig(Configuration):
    """Where Ray is, and what a task of it asks for."""

    address: str = ""
    """of a cluster; empty: that of RAY_ADDRESS, or a cluster that runs here, or else a new one on this machine"""
    gpus: Annotated[float, Range(least=0)] = 0.0
    """graphics cards of a task; below 1, several tasks share one"""


@dataclass(frozen=True)
class SlurmConfig(Configuration):
    """What a job asks Slurm for."""

    partition: str = ""
    """partition of the jobs; empty: that of the cluster's default"""
    account: str = ""
    """account that is charged; empty: that of the user's default"""
    minutes: Annotated[int, Range(least=1)] = 240
    """time limit of a job, which does one run or trial; the same command continues a run that reaches it"""
    memory_gb: Annotated[float, Range(above=0)] = 8.0
    """memory of a job in GB"""
    cpus: Annotated[int, Range(least=1)] = 1
    """cores, and so threads, of a job"""
    gpus: Annotated[int, Range(least=0)] = 0
    """graphics cards of a job"""
    cluster: Literal["slurm", "local"] = "slurm"
    """local: jobs are processes of this machine, to try a command where there is no Slurm"""


@dataclass(frozen=True)
class ExecutorConfig(Configuration):
    """Where the runs of a table, or the trials of a search, are executed.

    Example:
        >>> ExecutorConfig(workers=4).executor
        'local'
    """

    executor: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine with one thread each, or with 1 worker the command itself. ray: tasks of Ray.
    slurm: jobs of Slurm, one for each run or trial"""
    workers: Annotated[int, Range(least=1)] = 2
    """runs or trials that are executed (slurm: queued or executed) at a time"""
    ray: RayConfig = field(default_factory=RayConfig)
    """of --executor ray"""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """of --executor slurm"""


ONE_PROCESS = ExecutorConfig(workers=1)
"""The process that asks does the work itself."""
