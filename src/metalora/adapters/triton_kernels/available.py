"""Whether Triton kernels can run here."""

from __future__ import annotations

import importlib.util

import torch


def check_available() -> None:
    """Check that Triton kernels can run here.

    Raises:
        ValueError: Triton is missing, or there is neither a CUDA card nor Triton's interpreter.
    """
    if importlib.util.find_spec("triton") is None:
        raise ValueError('kernels "triton": triton is not installed; it comes with a PyTorch that is built for CUDA')
    if not (torch.cuda.is_available() or is_interpreted()):
        raise ValueError(
            'kernels "triton": there is no CUDA card; set TRITON_INTERPRET=1 before Python starts to compute them on '
            'the CPU, slowly and only as a check, or take kernels "torch"'
        )


def is_interpreted() -> bool:
    """Return True if Triton interprets its kernels on the CPU (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
