"""Factors of 16-bit layers, cast together once a forward instead of one by one in every layer.

On a card every cast is a launch, and one more in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from metalora.adapters.forward_state import CastFactors
from metalora.adapters.layers.base import AdaptedLayer, autocasts

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

HALF = (torch.bfloat16, torch.float16)


class CastOnce:
    """Casts Left and scale . Mid . Right of the layers of an adapter to the types of their bases.

    A factor that differs by example is left to the layers.

    Args:
        adapter: The adapter, with its layers.

    Attributes:
        layers: The layers that the fused kernels may run and whose factors are read as they are stored.
    """

    def __init__(self, adapter: Adapter):
        self.layers = [
            layer
            for layer in adapter.layers.values()
            if isinstance(layer, AdaptedLayer) and _reads_plain_factors(layer)
        ]

    def __call__(self) -> CastFactors | None:
        """Return the factors in the types of the bases; None if no base has 16 bits, or autocast chooses the types."""
        cast = None
        for dtype in HALF:
            layers = [layer for layer in self.layers if layer.base.weight.dtype == dtype]
            if layers and not autocasts(layers[0].base.weight.device.type):
                cast = CastFactors() if cast is None else cast
                _cast_layers(layers, dtype, cast)
        return cast


def has_half_bases(adapter: Adapter) -> bool:
    """Return True if there is a layer whose factors are cast to 16 bits in every forward."""
    return any(layer.base.weight.dtype in HALF for layer in adapter.cast_once().layers)


def _reads_plain_factors(layer: AdaptedLayer) -> bool:
    bound = layer.bound
    return (
        layer.low_rank is not None
        and layer.is_plain
        and bound.reads_as_stored
        and not (bound.rescalers or layer.runs_whole)
    )


def _cast_layers(layers: Sequence[AdaptedLayer], dtype: torch.dtype, cast: CastFactors) -> None:
    """Add the factors of layers of one type."""
    # A Left that several layers read is cast once for each: its gradients would be summed in 16 bits otherwise.
    tensors: list[Tensor] = []
    places: list[tuple[dict[str, Tensor], str, int]] = []
    for layer in layers:
        form, path = layer.low_rank, layer.bound.path
        assert form is not None, "only layers with a low-rank form are here"
        if not form.left_batched:
            places.append((cast.lefts, path, len(tensors)))
            tensors.append(layer.left(None))
        if not form.right_batched:
            places.append((cast.rights if form.fold_batched else cast.ups, path, len(tensors)))
            tensors.append(layer.right(None) if form.fold_batched else layer.up(None))
    if not tensors:
        return
    results = CastTogether.apply(dtype, *tensors) if torch.is_grad_enabled() else cast_together(tensors, dtype)
    for by_path, path, number in places:
        by_path[path] = results[number]


class CastTogether(Function):
    """Cast tensors of any shapes to one type; the gradients are cast back together."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the type, each in its own layout."""
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)
        return tuple(cast_together(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients in the types of the tensors."""
        if torch.is_grad_enabled() or len(set(ctx.dtypes)) > 1:  # of a backward that is differentiated again
            pairs = zip(gradients, ctx.dtypes, strict=True)
            return None, *(None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs)
        present = [gradient for gradient in gradients if gradient is not None]
        cast = iter(cast_together(present, ctx.dtypes[0]) if present else ())
        return None, *(None if gradient is None else next(cast) for gradient in gradients)


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors of any shapes in a type, by one operation.

    Args:
        tensors: At least one tensor.
        dtype: The type.

    Example:
        >>> [tensor.dtype for tensor in cast_together([torch.ones(2), torch.ones(3, 4)], torch.bfloat16)]
        [torch.bfloat16, torch.bfloat16]
    """
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, list(tensors))
    return cast
