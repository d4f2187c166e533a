"""Adapters with random numbers, and the comparison of their outputs."""

import torch
from torch import nn

from metalora import Adapter, AdapterConfig, attach

TOLERANCE = 1e-10


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE, name: str = "") -> None:
    """Fail unless two tensors agree, relatively and absolutely, to the tolerance; the message begins with the name."""
    same_kind = actual.shape == expected.shape and actual.dtype == expected.dtype and actual.device == expected.device
    if same_kind and torch.allclose(actual, expected, rtol=tolerance, atol=tolerance):
        return  # the function below takes twenty times as long, and says what differs
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, msg=lambda message: f"{name}: {message}" if name else message
    )


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
