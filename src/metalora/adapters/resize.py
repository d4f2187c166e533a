"""Give an attached adapter factors of other sizes: other ranks, or more tasks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import bind_layers
from metalora.adapters.layout import build_layout
from metalora.config import AdapterConfig
from metalora.methods.resolve import resolve


@torch.no_grad()
def resize(adapter: Adapter, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Give an adapter a configuration of other ranks or tasks, and the factors that fit it.

    The parameters stay the same objects, with other data, so that an optimiser keeps its references.

    Args:
        adapter: An attached adapter.
        config: Its new configuration.
        tensors: Key of a stored factor -> its new value; a factor that is not named keeps its value.

    Raises:
        ValueError: A factor does not have the shape that the new configuration gives it. Nothing is changed then.

    Example:
        >>> import metalora
        >>> from dataclasses import replace
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> factors = {key: torch.zeros([3 if size == 2 else size for size in factor.shape])
        ...            for key, factor in adapter.factors.items()}
        >>> resize(adapter, replace(adapter.config, rank=3), factors)
        >>> adapter.num_params()
        48
    """
    layout = build_layout(list(adapter.targets.values()), resolve(config))
    for key, stored in layout.params.items():
        shape = tuple(tensors[key].shape) if key in tensors else tuple(adapter.factors[key].shape)
        if shape != stored.shape:
            raise ValueError(f"factor {key!r}: shape {shape} does not fit, expected {stored.shape}")
    adapter.set_layout(config, layout)
    for key, value in tensors.items():
        parameter = adapter.learned[key]
        parameter.data = value.to(parameter).contiguous()  # `.data`, since `copy_` cannot change a shape
        parameter.grad = None  # it has the old shape
    bind_layers(adapter)
