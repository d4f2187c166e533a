"""Memory that is freed is used again, without new pages of the system."""

import os
import subprocess
import sys

import pytest
import torch

from metalora import TrainConfig, fit
from metalora._util import allocator

PROGRAM = """
import resource
import sys

import torch

from metalora._util.allocator import keep_freed_memory, keeping_freed_memory


def page_faults():
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])


left = page_faults()
with keeping_freed_memory():
    with keeping_freed_memory():
        inside = page_faults()
    still_inside = page_faults()
    before = held()
returned = before - held()
if not keep_freed_memory():
    sys.exit(3)
with keeping_freed_memory():  # a training in a command, which goes on to keep it
    pass
print(left, inside, still_inside, returned, page_faults())
"""


def test_large_tensors_take_no_new_pages_after_the_first():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    left, inside, still_inside, returned, kept = map(int, done.stdout.split())
    assert max(inside, still_inside, kept) < 20_000 < 60_000 < left  # 5 tensors of 16,384 pages
    assert returned > 0.9 * 2**26  # the tensor that the block kept


@pytest.mark.parametrize("variable", allocator.CHOICES_OF_USERS)
def test_a_choice_of_the_user_stays(variable, monkeypatch):
    monkeypatch.setattr(allocator, "_keepers", 0)
    monkeypatch.setenv(variable, "1000000")
    assert not allocator.keep_freed_memory()


def test_a_training_keeps_memory_until_its_end(monkeypatch):
    monkeypatch.setattr(allocator, "_keepers", 0)
    model, keepers = torch.nn.Linear(2, 2), []
    config = TrainConfig(steps=1)
    losses = fit(
        model,
        None,
        lambda part: model(torch.ones(1, 2)).sum(),
        config,
        extra_module=model,
        on_step=lambda *_: keepers.append(allocator._keepers),
    )
    assert len(losses) == 1 and keepers == [1] and allocator._keepers == 0
