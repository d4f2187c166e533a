"""The device that the bench runs on: CUDA if there is a card, otherwise the CPU."""

from __future__ import annotations

import torch


def bench_device() -> torch.device:
    """The first CUDA card, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the card has finished all its work, so that a clock can be read; nothing to do on the CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
