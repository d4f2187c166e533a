"""Several processes of one training, as `accelerate launch` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def process_index() -> int:
    """Return the number of this process among those that train together, from 0; 0 if it is alone.

    Example:
        >>> process_index()
        0
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0


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
        if torch.distributed.is_available() and torch.distributed.is_initialized():
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
