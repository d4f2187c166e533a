"""Memory that is freed is used again, without new pages of the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys

import torch

from metalora._util.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    run = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
    if run.returncode == 3:
        pytest.skip("the C library is not glibc")
    return int(run.stdout)


def test_large_tensors_take_no_new_pages_after_the_first():
    assert page_faults("keep") < 20_000 < 60_000 < page_faults("leave")  # 5 tensors of 16,384 pages
