"""Networks whose weights are spread over processes."""

from __future__ import annotations

from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 (`fully_shard`) has spread parameters of a network over processes, as DTensors.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
