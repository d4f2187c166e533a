"""Networks whose weights are spread over processes: each has a part of every one."""

from __future__ import annotations

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 (`fully_shard`) has spread parameters of a network over processes, as DTensors.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return any(is_distributed(parameter) for parameter in model.parameters())


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor of FSDP2.

    Example:
        >>> import torch
        >>> is_distributed(torch.zeros(2))
        False
    """
    return hasattr(tensor, "device_mesh")


def check_not_partitioned(model: nn.Module, verb: str) -> None:
    """Check that DeepSpeed has not taken the numbers of a network apart, as ZeRO-3 does: parameters of size 0 remain.

    Args:
        model: The network.
        verb: What asks, for the message.

    Raises:
        ValueError: A parameter is one of ZeRO-3.

    Example:
        >>> check_not_partitioned(nn.Linear(2, 2), "attach")
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise ValueError(
                f"{verb}: DeepSpeed ZeRO-3 has taken the parameter {name!r} apart, which cannot be read; spread "
                "the frozen network with torch.distributed.fsdp.fully_shard instead, or use ZeRO-2"
            )
