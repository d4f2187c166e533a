"""A second object for the same network: its parameters are shared, its state is its own."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from metalora.adapters.adapter import Adapter


def replica(model: nn.Module) -> nn.Module:
    """Return a copy of a model that has the very parameters and buffers of the model, adapters included.

    Everything else is its own: hooks, modes, conditions (`using`, `fix`), what lives during a forward. A thread or a
    lane of a server runs it next to the model without a second copy of the weights. Training or `swap` of one changes
    both. A replica is neither merged nor moved to another device, since the other one would change half with it.

    Args:
        model: Any model, with or without adapters.

    Returns:
        The replica.

    Raises:
        ValueError: An adapter is merged; it could not be unmerged in both.

    Example:
        >>> import torch, metalora
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> config = metalora.AdapterConfig("metatt-4+1d", rank=2, tasks=2, targets="0")
        >>> adapter = metalora.attach(model, config)
        >>> other = replica(model)
        >>> other[0].base.weight is model[0].base.weight
        True
        >>> metalora.adapter_of(other).fix(adapter.task(1))
        >>> adapter.fixed_condition is None
        True
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    if any(adapter.merged for adapter in adapters):
        raise ValueError("replica: the adapter is merged, and both could not be unmerged; unmerge it first")
    networks = [model, *(network for adapter in adapters for network in adapter.extractor)]
    tensors = chain.from_iterable(chain(network.parameters(), network.buffers()) for network in networks)
    shared: list[object] = [*tensors, *(adapter.sharing for adapter in adapters)]
    copied = copy.deepcopy(model, {id(thing): thing for thing in shared})
    for adapter in adapters:
        adapter.sharing.has_replicas = True
    return copied
