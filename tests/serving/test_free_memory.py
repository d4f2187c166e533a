"""A service gives memory that is free back to the system."""

import asyncio
import subprocess
import sys

import pytest

from metalora.serving import free_memory

PROGRAM = """
import psutil
import torch

from metalora._util.allocator import return_freed_memory

pieces = [torch.ones(2**14) for _ in range(2000)]  # 64 kB each, of the heap and not of pages of their own
kept = pieces[::20]
del pieces
before = psutil.Process().memory_info().rss
print(return_freed_memory(), (before - psutil.Process().memory_info().rss) // 10**6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc does it")
def test_gaps_between_pieces_that_are_used_go_back():
    pytest.importorskip("psutil")
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    done, megabytes = run.stdout.split()
    assert done == "True" and int(megabytes) > 60, run.stderr


def test_it_is_done_again_and_again_until_the_end(monkeypatch):
    times = []
    monkeypatch.setattr(free_memory, "return_freed_memory", lambda: times.append(1))

    async def block():
        async with free_memory.returning_free_memory(0.001):
            while len(times) < 3:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # one may have been under way
        count = len(times)
        await asyncio.sleep(0.05)
        return count

    assert asyncio.run(asyncio.wait_for(block(), 20)) == len(times) >= 3
