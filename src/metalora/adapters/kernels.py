"""The ways in which an adapted layer adds its update to the base's output, by name.

| kernel | one condition or many | what it computes |
|---|---|---|
| Fused | one | base and update in one pass, the update written into the base's output |
| Plain | one | base(x) + ((x Left) Mid) Right by plain autograd: the reference |
| WeightFirst | one | base(x) with W + Delta W, if that costs fewer multiply-adds |
| PerExample | many | as Fused, with Mid or Right of every example |
| Triton | both | as Fused and PerExample, the update by kernels written in Triton (`Adapter.use_kernels`) |
| PerExamplePlain | many | as Plain, with factors of every example |
| Circuit | both | base(x) + x Delta W, gate by gate |
| Rescaled | both | g times what Plain gives, without the base's bias (DoRA) |
| OwnForward | both | the base's own forward with W + Delta W, for a class that does not just multiply by its weight |

`choose` is the only place that decides. `layer.kernel` says what ran last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora.adapters.conditioning.rows import RowValues
from metalora.adapters.own_forward import Dependence
from metalora.adapters.triton_kernels.path import can_run, run
from metalora.adapters.whole import run_whole

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # not None in a checkpointed part

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values
    from metalora.adapters.forward_state import CastFactors, ValueFactors
    from metalora.adapters.layers.base import AdaptedLayer


@dataclass(frozen=True)
class Kernel:
    """A named way to compute the output of an adapted layer.

    Attributes:
        name: What `print(layer.kernel)` shows.
        run: (layer, input, values that differ by example, number of conditions) -> output.
    """

    name: str
    run: Callable[[AdaptedLayer, Tensor, Values | None, int], Tensor]

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return _CONSTANTS[self.name]  # a copy of a layer has the same kernel objects


# ---- choosing ------------------------------------------------------------------------------------------------------
def choose(layer: AdaptedLayer, x: Tensor, conditions: int) -> Kernel:
    """Choose the kernel of a layer for an input; see the table of this module.

    Hooks on the base, a patched forward, trained base weights, torch.func, torch.jit and torch.compile (which fuses by
    itself) exclude the fused kernels, since these call the base's function and not the base.

    Args:
        layer: The adapted layer.
        x: Its input, with a batch axis: (b, .., i), (b, i, *positions) or ids (b, ..).
        conditions: How many conditions are active.

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> x = torch.rand(3, 8)
        >>> choose(model[0], x, conditions=1)
        Fused
        >>> adapter.fused = False
        >>> choose(model[0], x, conditions=1)
        Plain
    """
    adapter, bound, form = layer.owner[0], layer.bound, layer.form
    base = layer._modules["base"]  # without a way through Module.__getattr__
    assert base is not None
    if layer.runs_whole:
        return OWN_FORWARD
    grad = torch.is_grad_enabled()
    # A hook, or a forward that somebody has set on the instance, must see every call of the base.
    unobserved = layer.is_plain and not (base._forward_hooks or base._forward_pre_hooks or "forward" in base.__dict__)
    if bound.rescalers:  # g needs the norms of W + Delta W, and multiplies base(x) too
        return RESCALED
    if conditions == 1 and unobserved and adapter.weight_first and not form.left_batched:
        threshold = bound.weight_first_from[grad]
        # Such a circuit forms its kernel in any case, so the base's own product would be one product more.
        full_rank_kernel = form.full_rank and not layer.gate_by_gate
        if full_rank_kernel or (threshold is not None and layer.positions(x) >= threshold):
            # Dropout acts on x Left, which does not exist here.
            if layer.full_precision(x) and not (adapter.training and adapter.dropout):
                return WEIGHT_FIRST
    if form.full_rank:
        return CIRCUIT
    # `is_transformed`, without its call
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    if adapter.fused and unobserved and not transformed and layer.can_fuse(x, grad):
        if adapter.uses_triton and can_run(layer, x, conditions):
            return TRITON
        return FUSED if conditions == 1 else PER_EXAMPLE
    return PLAIN if conditions == 1 else PER_EXAMPLE_PLAIN


# ---- running -------------------------------------------------------------------------------------------------------
def _fused(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    adapter, bound = layer.owner[0], layer.bound
    if adapter.training and adapter.dropout:  # which stands between x Left and Right, so that one node cannot do it
        return _fused_steps(layer, x, values, conditions)
    cache = adapter.state.shared
    # By identity: the parent passes one and the same tensor to Q, K and V.
    shared = bound.shares_input and cache.x is x
    hidden = cache.take(bound.left_key, x, bound.path, values) if shared else None
    forward, down, up = adapter.state.forward, None, None
    # As in `AdaptedLayer.up`: not in a checkpointed part.
    if forward is not None and forward.cast is not None and _top_hooks(True) is None:
        down, up = forward.cast.lefts.get(bound.path), forward.cast.ups.get(bound.path)
        if up is None and values is not None:
            together = adapter.factors_of_values(values)
            up = None if together is None else together.ups.get(bound.path)
    if hidden is not None:
        down = None
    elif down is None:
        down = layer.left(values)
    y, hidden = layer.fused(x, down, hidden, layer.up(values) if up is None else up)
    if down is not None and bound.shares_input:
        cache.keep(bound.left_key, x, bound.path, values, hidden)
    return layer.add_biases(y, values) if bound.has_biases else y


def _fused_steps(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    """Base and hidden activation first, then dropout or the factors of every example, then an in-place add."""
    bound, cache = layer.bound, layer.owner[0].state.shared
    layer.check_batch(x, conditions)
    shared = bound.shares_input and cache.x is x
    hidden = cache.take(bound.left_key, x, bound.path, values) if shared else None
    down, cast = None, _cast_factors(layer)
    if hidden is None:
        down = None if cast is None else cast.lefts.get(bound.path)
        down = layer.left(values, layer.repeats(x, conditions)) if down is None else down
    y, computed = layer.base_and_hidden(x, down)
    if computed is not None:
        hidden = computed
        if bound.shares_input:
            cache.keep(bound.left_key, x, bound.path, values, computed)
    assert hidden is not None
    y = _mixed_add(layer, x, y, hidden, values, conditions, cast)
    return layer.add_biases(y, values, layer.repeats(x, conditions)) if bound.has_biases else y


def _mixed_add(
    layer: AdaptedLayer,
    x: Tensor,
    y: Tensor,
    hidden: Tensor,
    values: Values | None,
    conditions: int,
    cast: CastFactors | None,
) -> Tensor:
    """Return y with (x Left) Mid Right written into it: by one node if Mid alone differs by example, or in steps."""
    adapter = layer.owner[0]
    dropout = adapter.training and adapter.dropout  # which stands between x Left and Mid
    if conditions > 1 and not dropout and layer.can_mix_in_place(y, hidden):
        together, repeat = _factors_of_values(layer, values), layer.repeats(x, conditions)
        mid = None if together is None or repeat > 1 else together.mids.get(layer.bound.path)
        mid = layer.mid(values, repeat) if mid is None else mid
        if mid is not None:
            right = None if cast is None else cast.rights.get(layer.bound.path)
            return layer.mix_in_place(y, hidden, mid, layer.right(values) if right is None else right, x)
    h = layer.with_dropout(layer.tokens_first(hidden, x))  # (b, t, k)
    h, up = layer.mix_or_fold(h, x, values, conditions, cast)
    return layer.add_in_place(y, h, up, x)


def _triton(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    table = values.table if isinstance(values, RowValues) else values
    return run(layer, x, values, conditions, _cast_factors(layer), _factors_of_values(layer, table))


def _factors_of_values(layer: AdaptedLayer, values: Values | None) -> ValueFactors | None:
    """Return what is made of values for all targets together; not in a checkpointed part."""
    return None if values is None or _top_hooks(True) is not None else layer.owner[0].factors_of_values(values)


def _cast_factors(layer: AdaptedLayer) -> CastFactors | None:
    """Return what the forward has cast for all targets together; not in a checkpointed part."""
    forward = layer.owner[0].state.forward
    return None if forward is None or _top_hooks(True) is not None else forward.cast


def _plain(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    return add_update(layer, x, layer.base(x), values)


def _own_forward(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    return run_whole(layer, x, values)


def _weight_first(layer: AdaptedLayer, x: Tensor, values: Values | None, conditions: int) -> Tensor:
    y = layer.apply_weight(x, layer.adapted_weight(values))
    return layer.add_biases(y, values) if layer.bound.has_biases else y


def add_update(layer: AdaptedLayer, x: Tensor, y: Tensor, values: Values | None) -> Tensor:
    """Return y + the update of x by plain autograd: the reference for all kernels, and the update of a known base(x).

    Args:
        layer: The adapted layer.
        x: Its input.
        y: base(x), in the base's own shape.
        values: The values that differ by example, by key of the stored factor; None if none do.

    Returns:
        The output of the layer, in the shape of y.

    Raises:
        ValueError: The conditions fit neither the batch nor the beams of `generate`.
    """
    bound = layer.bound
    conditions = bound.num_conditions(values)
    layer.check_batch(x, conditions)
    repeat = layer.repeats(x, conditions)
    update = _update(layer, x, y, values, conditions, repeat)
    y = layer.rescaled(y, update, values, repeat) if bound.rescalers else y + update
    return layer.add_biases(y, values, repeat) if bound.has_biases else y


def _update(layer: AdaptedLayer, x: Tensor, y: Tensor, values: Values | None, conditions: int, repeat: int) -> Tensor:
    """Return x Delta W in the shape of y, by plain autograd: ((x Left) Mid) Right, or gate by gate for a circuit."""
    if layer.form.full_rank:
        change = layer.with_dropout(layer.through(x, values, repeat, y.dtype))
        return layer.restore(layer.scaled(change), y)
    dense_update = layer.dense_update(x, y, values, conditions)
    if dense_update is not None:
        return dense_update
    source = x.to(y.dtype) if x.is_floating_point() else x  # the ids of an embedding stay integers
    kernel = layer.left_kernel(values, repeat).to(y.dtype)
    through_base = layer.dependence is Dependence.LINEAR
    hidden = layer.with_dropout((layer.hidden_of_base if through_base else layer.hidden)(source, kernel))
    if conditions > 1:
        h, up = layer.mix_or_fold(layer.tokens_first(hidden, x), x, values, conditions)
        hidden = layer.channels_first(h)
    else:
        up = layer.up(values)
    return layer.restore(layer.expand(hidden, up.to(y.dtype)), y)


FUSED = Kernel("Fused", _fused)
PLAIN = Kernel("Plain", _plain)
WEIGHT_FIRST = Kernel("WeightFirst", _weight_first)
PER_EXAMPLE = Kernel("PerExample", _fused_steps)
PER_EXAMPLE_PLAIN = Kernel("PerExamplePlain", _plain)
TRITON = Kernel("Triton", _triton)
CIRCUIT = Kernel("Circuit", _plain)
RESCALED = Kernel("Rescaled", _plain)
OWN_FORWARD = Kernel("OwnForward", _own_forward)
_CONSTANTS = {
    "Fused": "FUSED",
    "Plain": "PLAIN",
    "WeightFirst": "WEIGHT_FIRST",
    "PerExample": "PER_EXAMPLE",
    "PerExamplePlain": "PER_EXAMPLE_PLAIN",
    "Triton": "TRITON",
    "Circuit": "CIRCUIT",
    "Rescaled": "RESCALED",
    "OwnForward": "OWN_FORWARD",
}
