"""Merge and unmerge: every change happens at all targets or at none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import required_adapter
from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.held_matrix import whole_parameter
from metalora.adapters.layers import MergeableLayer
from metalora.adapters.offloading import check_present
from metalora.adapters.rounded_sum import rounded_sum


def check_untied(adapter: Adapter, verb: str) -> None:
    """Raise a ValueError for a target whose weight another module uses too."""
    # `parameters()` of the whole model names a tied weight once; each module for itself counts every use.
    uses = Counter(id(p) for module in adapter.model.modules() for p in module.parameters(recurse=False))
    for path, layer in adapter.layers.items():
        if uses[id(whole_parameter(layer.base))] > 1:
            raise ValueError(
                f"{verb}: the weight of target {path!r} is tied to another module's, which would change too"
            )


def merged_layers(adapter: Adapter) -> dict[str, MergeableLayer]:
    """The layers that have a Delta W, by path; a bottleneck has none and is never merged."""
    return {path: layer for path, layer in adapter.layers.items() if isinstance(layer, MergeableLayer)}


@torch.no_grad()
def merge(model: nn.Module, condition: Condition | None = None) -> None:
    """Add every Delta W to its base weight; the originals are kept, so that `unmerge` restores them bit for bit.

    W + Delta W is added in the precision of the factors and rounded once to the type of W.

    Args:
        model: A model with an adapter.
        condition: One condition (a snapshot), for an adapter whose factors differ by example; None: the fixed one.

    Raises:
        ValueError: No adapter; merged already; a condition of several examples; a Delta W that is not finite; weights
            that accelerate keeps elsewhere; a sum that the type of W cannot hold, such as 70000 in float16; a bias that
            the base has no bias for; a method without a Delta W (a bottleneck); a model with replicas. Nothing is
            changed then.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> x = torch.rand(3, 8)
        >>> before = model(x)
        >>> merge(model)
        >>> adapter.merged, torch.allclose(model(x), before, atol=1e-6)
        (True, True)
    """
    adapter = required_adapter(model, "merge")
    if adapter.merged:
        raise ValueError("merge: the adapter is already merged")
    if adapter.sharing.has_replicas:
        raise ValueError("merge: replicas of the model read the same base weights; merge a copy (copy.deepcopy) of it")
    condition = condition if condition is not None else adapter.fixed_condition
    if condition is not None:
        if len(condition) != 1:
            raise ValueError(f"merge: the condition is for {len(condition)} examples; merge one (condition.mean())")
        check_condition(adapter, condition)
    check_untied(adapter, "merge")
    values = None if condition is None else condition.values
    merged: dict[str, torch.Tensor] = {}
    merged_biases: dict[str, torch.Tensor | None] = {}
    layers = merged_layers(adapter)
    for path in adapter.layers.keys() - layers.keys():
        adapter.delta(path, condition)  # raises: a bottleneck has no Delta W
    for path, layer in layers.items():
        check_present(cast(nn.Module, layer.base), f"merge: target {path!r}")
        merged[path] = rounded_sum(layer.base.weight, adapter.delta(path, condition), f"target {path!r}")
        merged_biases[path] = layer.merged_bias(values)
    outside = {path: bias.merged_bias() for path, bias in adapter.outside_biases.items()}
    # Nothing raises an error from here on: all targets are changed, or none.
    for path, layer in layers.items():
        layer.merge_weight(merged[path])
        layer.merge_bias(merged_biases[path])
    for path, bias in adapter.outside_biases.items():
        bias.merge(outside[path])


@torch.no_grad()
def unmerge(model: nn.Module, *, discard_changes: bool = False) -> None:
    """Restore the base weights that `merge` kept, bit for bit; a model that is not merged is left as it is.

    Args:
        model: A model with an adapter.
        discard_changes: Restore them also if the merged weights were trained, loaded or converted since.

    Raises:
        ValueError: The model has no adapter; a merged weight or bias was changed since the merge, and
            `discard_changes` is False. Nothing is changed then.

    Example:
        >>> import metalora
        >>> base = nn.Linear(8, 2)
        >>> weight = base.weight.detach().clone()
        >>> model = nn.Sequential(base)
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> merge(model)
        >>> torch.equal(base.weight, weight)
        False
        >>> unmerge(model)
        >>> torch.equal(base.weight, weight)
        True
    """
    adapter = required_adapter(model, "unmerge")
    layers = merged_layers(adapter)
    if not discard_changes:
        _check_unchanged(adapter, layers)
    for layer in layers.values():
        layer.unmerge_weight()
        layer.unmerge_bias()
    for bias in adapter.outside_biases.values():
        bias.unmerge()


def _check_unchanged(adapter: Adapter, layers: Mapping[str, MergeableLayer]) -> None:
    """Raise a ValueError if unmerging would replace what was trained or loaded after the merge."""
    changed = [f"target {path!r}" for path, layer in layers.items() if layer.changed_since_merge()]
    changed += [f"the bias of {path!r}" for path, bias in adapter.outside_biases.items() if bias.changed_since_merge()]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ValueError(
            f"unmerge: {changed[0]}{more} was trained, loaded or converted after the merge, and the weights of before "
            "would replace it; keep model.state_dict() if you need it, then call metalora.unmerge(model, "
            "discard_changes=True)"
        )
