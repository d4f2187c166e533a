"""Peak memory of a training step, each case in a process of its own, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from metalora.bench.cases import build_case, build_model
from metalora.bench.config import BenchConfig

WARM = 2  # steps before the measured one: the optimiser has its moments, the allocator its arenas
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed() -> None:
    """Let this process keep the memory that it frees, as CUDA's allocator does; without glibc nothing happens.

    Otherwise the kernel zeroes new pages again and again, and that is timed too.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # never give the end of the heap back
        library.mallopt(M_MMAP_MAX, 0)  # no mappings for large blocks, which are given back when they are freed


def peak_bytes(config: BenchConfig, name: str) -> int:
    """Bytes that a training step of a case needs beyond the process before its first step.

    On the CPU it is resident memory, on CUDA the allocator's.

    Args:
        config: The configuration of the bench.
        name: One of `case_names(config)`.
    """
    # A new process for each case, and not a fork: neither the memory of other cases nor a CUDA context is in it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_bytes, config, name).result()


def _peak_bytes(config: BenchConfig, name: str) -> int:
    base, inputs = build_model(config)
    case = build_case(name, base, inputs, config)
    before = _current_bytes()
    for _ in range(WARM):
        case.step()
    _forget_highest()
    case.step()
    return _highest_bytes() - before


def _current_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _process_bytes("VmRSS")


def _highest_bytes() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _process_bytes("VmHWM")


def _forget_highest() -> None:
    """Start the high-water mark anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets the peak resident size


def _process_bytes(field: str) -> int:
    """A field of Linux's /proc/self/status: VmRSS (resident now) or VmHWM (the most that was resident)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field}")
