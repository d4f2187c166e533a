"""Factors of 16-bit layers, cast together once a forward instead of one by one in every layer.

On a card every cast is a launch, and one more in backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from metalora.adapters.forward_state import CastFactors, ValueFactors
from metalora.adapters.layers.base import AdaptedLayer, autocasts

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values

HALF = (torch.bfloat16, torch.float16)
_Place = tuple[dict[str, Tensor], str]  # a dictionary by path, and the path


class CastOnce:
    """Casts Left and scale . Mid . Right of the layers of an adapter to the types of their bases.

    Of the factors that differ by example only a Mid is cast, which is not contracted; others are left to the layers.

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
        for dtype, layers in self._by_type():
            cast = CastFactors() if cast is None else cast
            _cast_layers(layers, dtype, cast)
        return cast

    def under(self, values: Values, mids: dict[str, Tensor], cast: CastFactors) -> ValueFactors:
        """Return factors that depend on values in the types of the bases.

        Args:
            values: The values that differ by example.
            mids: Path -> Mid of each example, of the targets whose Mid is made already.
            cast: What this forward has cast.

        Returns:
            scale . Mid . Right of all targets under one condition; each Mid that needs no contraction under many.
        """
        result = ValueFactors(values, dict(mids), {})
        for dtype, layers in self._by_type():
            _cast_under(result, layers, dtype, cast)
        return result

    def _by_type(self) -> Iterator[tuple[torch.dtype, list[AdaptedLayer]]]:
        """Yield each type of 16 bits with the layers whose base has it, unless autocast chooses the types."""
        for dtype in HALF:
            layers = [layer for layer in self.layers if layer.base.weight.dtype == dtype]
            if layers and not autocasts(layers[0].base.weight.device.type):
                yield dtype, layers


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
    places: list[_Place] = []
    for layer in layers:
        form, path = layer.low_rank, layer.bound.path
        assert form is not None, "only layers with a low-rank form are here"
        if not form.left_batched:
            places.append((cast.lefts, path))
            tensors.append(layer.left(None))
        if not form.right_batched:
            places.append((cast.rights if form.fold_batched else cast.ups, path))
            tensors.append(layer.right(None) if form.fold_batched else layer.up(None))
    _cast_to_places(tensors, dtype, places)


def _cast_under(result: ValueFactors, layers: Sequence[AdaptedLayer], dtype: torch.dtype, cast: CastFactors) -> None:
    """Add factors that depend on values for layers of one type."""
    tensors: list[Tensor] = []
    places: list[_Place] = []
    for layer in layers:
        path, is_one = layer.bound.path, layer.bound.num_conditions(result.values) == 1
        if path in cast.ups:  # no value changes it
            continue
        made = layer.up if is_one else layer.mid
        value = result.mids[path] if path in result.mids else made(result.values)
        if value is not None:
            tensors.append(value)
            places.append((result.ups if is_one else result.mids, path))
    _cast_to_places(tensors, dtype, places)


def _cast_to_places(tensors: Sequence[Tensor], dtype: torch.dtype, places: Sequence[_Place]) -> None:
    """Cast tensors together, each to its place."""
    if not tensors:
        return
    results = CastTogether.apply(dtype, *tensors) if torch.is_grad_enabled() else cast_together(tensors, dtype)
    for (by_path, path), result in zip(places, results, strict=True):
        by_path[path] = result


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
