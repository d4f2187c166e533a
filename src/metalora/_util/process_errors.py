"""Errors of one of several processes, which end all of them: nobody waits for a process that has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from metalora._util.common_error import CommonError
from metalora._util.processes import process_count


@contextmanager
def errors_in_all_processes() -> Iterator[None]:
    """End all processes with one error if the block fails in one of them.

    The block must not exchange anything with other processes, since the others may have failed.

    Raises:
        CommonError: The block raised an error in another process, or in this one.

    Example:
        >>> with errors_in_all_processes():  # a single process raises its error as it is
        ...     int("many")
        Traceback (most recent call last):
        ValueError: invalid literal for int() with base 10: 'many'
    """
    if process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    _raise_together(error)


def mean_over_processes(function: Callable[[], float], device: torch.device, *, alone: bool = True) -> float:
    """Return the mean of what a function returns in every process.

    Args:
        function: What each process does.
        device: Where the processes exchange numbers, which is where their parameters are.
        alone: Whether the function exchanges nothing with the other processes. If it does, an error ends its own
            process at once, and the launcher has to end the others.

    Raises:
        CommonError: The function raised an error in another process, or in this one, and is `alone`.

    Example:
        >>> mean_over_processes(lambda: 0.5, torch.device("cpu"))
        0.5
    """
    if process_count() == 1:
        return function()
    value, error = 0.0, None
    try:
        value = function()
    except Exception as caught:
        if not alone:
            raise
        error = caught
    sums = torch.tensor([value, error is not None], dtype=torch.float64, device=device)  # (2,)
    torch.distributed.all_reduce(sums)
    total, failures = sums.tolist()
    if failures:
        _raise_together(error)
    return float(total) / process_count()


def _raise_together(error: Exception | None) -> None:
    """Raise the error of the first process that has one; nothing if no process has one."""
    problems: list[str | None] = [None] * process_count()
    torch.distributed.all_gather_object(problems, None if error is None else _told(error))
    failed = [(number, problem) for number, problem in enumerate(problems) if problem is not None]
    if not failed:
        return
    number, problem = failed[0]
    where = "" if all(told == problem for told in problems) else f"process {number}: "
    raise CommonError(f"{where}{problem}") from error


def _told(error: Exception) -> str:
    """Return the message of an error; of one that is not for users with its type."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
