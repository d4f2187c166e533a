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
    """Give the adapter a configuration of other ranks or tasks, and the factors that fit it.

    Parameters stay the same objects, with other data: optimisers and the like keep their references.
    """
    layout = build_layout(list(adapter.targets.values()), resolve(config))
    for key, stored in layout.params.items():
        shape = tuple(tensors[key].shape) if key in tensors else tuple(adapter.factors[key].shape)
        if shape != stored.shape:
            raise ValueError(f"factor {key!r}: shape {shape} does not fit, expected {stored.shape}")
    adapter.set_layout(config, layout)
    for key, value in tensors.items():
        parameter = adapter.learned[key]
        parameter.data, parameter.grad = value.to(parameter).contiguous(), None
    bind_layers(adapter)
