"""Several processes of one training, as `accelerate launch`, `torchrun` or `init_process_group` makes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from metalora._util.common_error import CommonError

Result = TypeVar("Result")


def join_processes() -> None:
    """Make the group of the processes that `accelerate launch` or `torchrun` has started, unless there is one.

    Example:
        >>> join_processes()  # nothing happens in a single process
    """
    if process_count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def process_count() -> int:
    """Return how many processes train together; 1 without a process group of torch.distributed.

    Example:
        >>> process_count()
        1
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def process_index() -> int:
    """Return the number of this process among those that train together, from 0; 0 if it is alone.

    Example:
        >>> process_index()
        0
    """
    return torch.distributed.get_rank() if process_count() > 1 else 0


def of_process_0(result: Result) -> Result:
    """Return what process 0 has computed; without other processes, the result itself.

    The last bits of a decomposition differ between machines, and so could the ranks that they lead to.

    Example:
        >>> of_process_0(3)
        3
    """
    if process_count() > 1:
        results = [result]
        torch.distributed.broadcast_object_list(results, src=0)
        result = results[0]
    return result


def done_by_process_0(function: Callable[[], Result]) -> Result:
    """Run a function in process 0 alone, and return in all processes what it returns.

    Raises:
        CommonError: In all processes, if the function raises a ValueError: nobody waits for a process that has stopped.

    Example:
        >>> done_by_process_0(lambda: 3)
        3
    """
    if process_count() == 1:
        return function()
    outcome: tuple[Any, str | None] = None, None
    if process_index() == 0:
        try:
            outcome = function(), None
        except ValueError as error:
            outcome = None, str(error)
    result, problem = of_process_0(outcome)
    if problem is not None:
        raise CommonError(problem)
    agreed: Result = result
    return agreed


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Return which of some flags are set in any process, so that all of them decide the same.

    Args:
        flags: The flags of this process, as many as in the others.
        device: Where the processes exchange numbers, which is where their parameters are.

    Example:
        >>> any_process([True, False], torch.device("cpu"))
        [True, False]
    """
    if process_count() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32, device=device)  # (flags,)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    agreed: list[bool] = votes.bool().tolist()
    return agreed


def check_equal(facts: Mapping[str, Any], verb: str) -> None:
    """Check that some facts are the same in all processes.

    Args:
        facts: Name of a fact, as messages call it -> a value that can be compared and pickled.
        verb: What asks, for the message.

    Raises:
        CommonError: In all processes, if a fact differs.

    Example:
        >>> check_equal({"the rank of the adapter": 4}, "fit")
    """
    if process_count() == 1:
        return
    everywhere: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(everywhere, dict(facts))
    for name in facts:
        for number, others in enumerate(everywhere):
            if others[name] != everywhere[0][name]:
                raise CommonError(
                    f"{verb}: {name} of process {number} and of process 0 differ; processes of one "
                    "torch.distributed group train one adapter together, expected the same in each"
                )


@contextmanager
def one_process_writes() -> Iterator[bool]:
    """Let the first process write, while the others wait until it has.

    Yields:
        Whether this process is the one that writes.

    Example:
        >>> with one_process_writes() as writes:
        ...     print(writes)
        True
    """
    try:
        yield process_index() == 0
    finally:  # also after an error, for which the others must not wait forever
        if process_count() > 1:
            torch.distributed.barrier()


@contextmanager
def process_0_first() -> Iterator[None]:
    """Run a block in the first process, and then in the others, which find the files that it has left.

    Example:
        >>> with process_0_first():
        ...     print("once, in a single process")
        once, in a single process
    """
    if process_index() > 0:
        torch.distributed.barrier()
    try:
        yield
    finally:  # also after an error, for which the others must not wait forever
        if process_count() > 1 and process_index() == 0:
            torch.distributed.barrier()


def default_device() -> torch.device:
    """Return where a network runs if nobody says otherwise: the GPU of this process, or the CPU without one.

    Example:
        >>> default_device().type in ("cpu", "cuda")
        True
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
