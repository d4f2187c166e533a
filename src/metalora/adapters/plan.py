"""The form of a network at every target, planned once with the real sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from metalora.adapters.layout import Layout, TargetLayout
from metalora.adapters.targets import Target
from metalora.tensornet.forms.bottleneck import Bottleneck
from metalora.tensornet.forms.circuit import Circuit
from metalora.tensornet.forms.feature_wise import FeatureWiseForm
from metalora.tensornet.forms.low_rank import LowRankForm
from metalora.tensornet.forms.sum import SumForm
from metalora.tensornet.spec import INPUT_MODES

Form = LowRankForm | SumForm | Circuit | Bottleneck | FeatureWiseForm


def plan_form(target: TargetLayout, per_example: Sequence[str]) -> Form:
    """Plan the form of the network at a target.

    Args:
        target: The target in the layout.
        per_example: The stored factors that differ by example.

    Returns:
        A circuit, a bottleneck or a feature-wise form if the network says so; otherwise a low-rank form, or the sum of
        several.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, find_targets
        >>> from metalora.adapters.layout import build_layout
        >>> from metalora.methods.resolve import resolve
        >>> targets = find_targets(nn.Sequential(nn.Linear(8, 4)), "0")
        >>> layout = build_layout(targets, resolve(AdapterConfig("lora", rank=2)))
        >>> form = plan_form(layout.targets["0"], per_example=())
        >>> form.rank, form.left, form.right
        (2, ['A'], ['B'])
    """
    batched = target.differing_factors(per_example)
    if target.network.form == "circuit":
        return Circuit(target.network, target.sizes, batched)
    if target.network.form == "bottleneck":
        return Bottleneck(target.network, target.sizes, batched)
    if target.network.form == "feature_wise":
        return FeatureWiseForm(target.network, target.sizes)
    # Each term is split at its own cheapest place; their ranks add up.
    forms = [LowRankForm(term, target.sizes, batched) for term in target.network.split_terms()]
    return SumForm(forms) if len(forms) > 1 else forms[0]


def macs_per_position(form: Form, target: Target) -> int:
    """Multiply-adds that the update takes at one position of a target's input; base(x) is not counted.

    A position is one of the output of a convolution; of the input, if it is transposed.

    Args:
        form: The form of the network at the target.
        target: The target.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, find_targets
        >>> from metalora.adapters.layout import build_layout
        >>> from metalora.methods.resolve import resolve
        >>> targets = find_targets(nn.Sequential(nn.Conv2d(6, 4, 3, groups=2)), "0")
        >>> layout = build_layout(targets, resolve(AdapterConfig("lora", rank=2)))
        >>> macs_per_position(plan_form(layout.targets["0"], ()), targets[0])  # 2 groups x 2 x 27, and 2 x 4
        116
    """
    if target.groups == target.outputs_per_position == 1:
        return form.macs_per_token
    if isinstance(form, Circuit):
        return base_macs(target)  # such a layer convolves with Delta W
    if isinstance(form, Bottleneck | FeatureWiseForm):
        return form.macs_per_token * target.outputs_per_position
    # Every group has the same Left; Right is run at every position of the output.
    inputs = target.groups * base_macs(target) // target.sizes["out"]
    return form.rank * (inputs + target.outputs_per_position * target.sizes["out"])


def base_macs(target: Target) -> int:
    """Multiply-adds of the target's own weight at one position.

    Example:
        >>> base_macs(Target("fc", "linear", {"in": 8, "out": 16}))
        128
    """
    return target.sizes["out"] * prod(target.sizes.get(mode, 1) for mode in INPUT_MODES)  # a Linear has no kh and kw


def plan_forms(layout: Layout, per_example: Sequence[str]) -> dict[str, Form]:
    """Plan the forms of all targets; targets of equal network, sizes and handlers share one object.

    Args:
        layout: The targets and their networks.
        per_example: The stored factors that differ by example.

    Returns:
        Path of the target -> form.
    """
    planned: dict[tuple[Any, ...], Form] = {}
    forms = {}
    for path, target in layout.targets.items():
        network = target.network
        factors_and_folds = (*network.factors.items(), *network.folds.items(), *network.terms)
        # An equal plan must be one object: `BatchedFold` groups targets by the identity of their forms.
        key = (network.form, network.biases, factors_and_folds, tuple(target.sizes.items()), target.handlers)
        if key not in planned:
            planned[key] = plan_form(target, per_example)
        forms[path] = planned[key]
    return forms
