"""The forward of a base with W + Delta W in the place of its weight, for classes with a forward of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from metalora.adapters.own_forward import run_with

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values
    from metalora.adapters.layers.base import AdaptedLayer


def run_whole(
    layer: AdaptedLayer,
    x: Tensor,
    values: Values | None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Return f(x; W + Delta W), with f the forward of the base's class; what a merged layer computes.

    Factors that differ by example take a run for each example: f may be any function of the weight.

    Args:
        layer: The adapted layer.
        x: Its input, (*, i), (b, i, *positions) or ids (b, ..).
        values: The values that differ by example; None if none do.
        args: Further arguments of f.
        kwargs: The same by name.

    Returns:
        What f returns.

    Raises:
        ValueError: The factors differ by example, and f has further arguments or returns something else than a tensor;
            or the adapter has dropout in training, which would act on x Left.
    """
    adapter = layer.owner[0]
    if adapter.training and adapter.dropout:
        raise ValueError(
            f"target {layer.target.path!r}: {type(layer.base).__name__} runs with W + ΔW as a whole, which leaves the "
            f"adapter's dropout out; set dropout to 0, or leave the target out, exclude=[{layer.target.path!r}]"
        )
    conditions = layer.bound.num_conditions(values)
    if conditions == 1:
        return cast(Tensor, _run(layer, x, values, args, kwargs or {}))
    layer.check_batch(x, conditions)
    outputs = []
    for rows, own_values in _by_condition(x, values, conditions):
        y = None if args or kwargs else _run(layer, rows, own_values, (), {})
        if not isinstance(y, Tensor):
            raise ValueError(
                f"target {layer.target.path!r}: the adapter differs by example, and {type(layer.base).__name__} takes "
                f"or returns more than one tensor; leave the target out, exclude=[{layer.target.path!r}]"
            )
        outputs.append(y)
    return torch.cat(outputs)


def _by_condition(x: Tensor, values: Values | None, conditions: int) -> Iterator[tuple[Tensor, Values]]:
    """Yield the rows of an input that share a condition, (rows, ..), and its values, (1, *modes) each."""
    assert values is not None, "only values differ by example"
    if conditions == 0:  # no examples: one run over none of them, which the graph of the factors has too
        yield x, {key: v.sum(0, keepdim=True) for key, v in values.items()}
        return
    rows = x.shape[0] // conditions
    for number in range(conditions):
        own = {key: v if len(v) == 1 else v[number : number + 1] for key, v in values.items()}
        yield x[number * rows : (number + 1) * rows], own


def _run(layer: AdaptedLayer, x: Tensor, values: Values | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run f for one condition; the shift of a bias is added to the base's, or else to the output."""
    base, shift = layer.base, layer.shift(values)
    weight, delta = base.weight, layer.delta(values)
    tensors = {"weight": (weight.to(delta.dtype) + delta).to(weight.dtype)}
    bias = getattr(base, "bias", None)
    if shift is not None and bias is not None:
        tensors["bias"] = (bias.to(shift.dtype) + shift).to(bias.dtype)
    y = run_with(base, tensors, x, *args, **kwargs)
    return y if shift is None or bias is not None else layer.add_biases(y, values)
