"""Peak memory of a training step, each case in a process of its own; and what becomes of freed memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from metalora.bench.config import BenchConfig

WARM = 2  # steps before the one that is measured: the optimiser has its moments, the allocator its arenas
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed() -> None:
    """Let this process keep the memory that it frees, for all that is timed alike; nothing without glibc."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_MAX, 0)


def peak(config: BenchConfig, name: str) -> int:
    """Bytes that a training step of a case has beyond the process before its first step: resident memory, or the
    allocator's on CUDA."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, config, name).result()


def _peak(config: BenchConfig, name: str) -> int:
    from metalora.bench.steps import build, make

    base, inputs = build(config)
    case = make(name, base, inputs, config)
    before = _bytes("VmRSS")
    for _ in range(WARM):
        case.step()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    case.step()
    return _bytes("VmHWM") - before


def _bytes(field: str) -> int:
    """What is held now (VmRSS), or what was held at the most (VmHWM), in the terms of Linux."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
