"""Whether Triton kernels can run here."""

from __future__ import annotations

import importlib.util

import torch


def unavailable() -> str | None:
    """Return why Triton kernels cannot run here, and what to do about it; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; it comes with a PyTorch that is built for CUDA"
    if torch.cuda.is_available() or is_interpreted():
        return None
    return (
        "there is no CUDA card; TRITON_INTERPRET=1, set before Python starts, computes Triton kernels on the CPU, "
        "which is slow and only a check"
    )


def check_available() -> None:
    """Raise a ValueError that says why, if Triton kernels cannot run here."""
    reason = unavailable()
    if reason is not None:
        raise ValueError(f'kernels "triton": {reason}')


def is_interpreted() -> bool:
    """Return True if Triton interprets its kernels on the CPU (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
