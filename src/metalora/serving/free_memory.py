"""Memory that is free goes back to the system: batches of other sizes leave gaps, which else look like a leak."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from metalora._util.allocator import return_freed_memory

SECONDS = 10.0  # between two times, each of which takes some 10 ms


@contextlib.asynccontextmanager
async def returning_free_memory(seconds: float = SECONDS) -> AsyncIterator[None]:
    """Give free memory back to the system again and again, until the block ends.

    Args:
        seconds: The time between two times.
    """
    task = asyncio.create_task(_return_again_and_again(seconds))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _return_again_and_again(seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(return_freed_memory)
