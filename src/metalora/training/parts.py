"""The parts of a step: batches whose mean gradient makes one step of the optimiser, over all processes.

P processes that accumulate A batches each have n = P A parts, which are numbered over the run: step s has the parts
s n, ..., (s + 1) n - 1. Process r takes every P-th of them, from the r-th. A part depends only on its number, so that
a run is the same with any number of processes as long as n is.
"""

from __future__ import annotations

from metalora._util.common_error import CommonError
from metalora._util.processes import process_count, process_index
from metalora.config import TrainConfig


def parts_per_step(config: TrainConfig) -> int:
    """Return how many parts a step has: the number of processes times `config.accumulate`.

    Example:
        >>> parts_per_step(TrainConfig(accumulate=4))
        4
    """
    return process_count() * config.accumulate


def parts_of_process(step: int, config: TrainConfig) -> range:
    """Return the numbers of the parts of a step that this process takes.

    Args:
        step: Number of the step, from 0.
        config: Its `accumulate` counts.

    Example:
        >>> list(parts_of_process(step=2, config=TrainConfig(accumulate=3)))
        [6, 7, 8]
    """
    parts = parts_per_step(config)
    return range(step * parts + process_index(), (step + 1) * parts, process_count())


def accumulated_of(parts: int) -> int:
    """Return how many of the parts of a step each process takes, if there are `parts` over all processes.

    Raises:
        CommonError: The processes cannot share the parts evenly.

    Example:
        >>> accumulated_of(4)
        4
    """
    processes = process_count()
    if parts % processes:
        raise CommonError(
            f"train.accumulate is {parts}, and {processes} processes cannot share {parts} batches a step evenly; "
            f"expected a multiple of {processes}"
        )
    return parts // processes
