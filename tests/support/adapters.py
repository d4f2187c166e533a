"""Adapters with random numbers, and the comparison of their outputs."""

import torch
from torch import nn

from metalora import Adapter, AdapterConfig, attach

TOLERANCE = 1e-10


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Fail unless two tensors agree, relatively and absolutely, to the tolerance."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def randomise(adapter: Adapter, std: float = 0.7) -> None:
    """Move every learned number away from its initial value, so that nothing is zero or the identity by accident."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, std)


def attach_random(model: nn.Module, config: AdapterConfig, std: float = 0.7) -> Adapter:
    """Attach an adapter whose learned numbers are random."""
    adapter = attach(model, config)
    randomise(adapter, std)
    return adapter
