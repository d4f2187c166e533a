"""Attach and detach: every change happens at all targets or at none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import nn

from metalora._util.sharding import check_not_partitioned
from metalora._util.user_warning import warn_user
from metalora.adapters.adapter import Adapter
from metalora.adapters.bound_target import slot_of
from metalora.adapters.cast_once import has_half_bases
from metalora.adapters.conditioning.features import Inputs
from metalora.adapters.conditioning.sources import prepare_condition
from metalora.adapters.continuous import guard_continuous_batching, unguard_continuous_batching
from metalora.adapters.generation import guard_generate, unguard_generate
from metalora.adapters.held_matrix import HeldMatrix, required_base
from metalora.adapters.host import AttachedHost, guard_forward, unguard_forward
from metalora.adapters.init import initial_factors
from metalora.adapters.layers import (
    LAYERS,
    AdaptedLayer,
    BottleneckLayer,
    FeatureWiseLayer,
    MergeableLayer,
    OutputLayer,
)
from metalora.adapters.layout import build_layout
from metalora.adapters.merged_state import guard_state
from metalora.adapters.offloading import BaseWeights, check_matrix_present
from metalora.adapters.plan import Form, plan_forms
from metalora.adapters.saved_model import guard_saving, unguard_saving
from metalora.adapters.skipped import warning_of
from metalora.adapters.substitution import restore_parameters, substitute
from metalora.adapters.targets import Target
from metalora.adapters.trained_biases import OutsideBias, bias_shapes
from metalora.adapters.usable_targets import usable_targets
from metalora.adapters.weight_readers import computed_with
from metalora.config import AdapterConfig
from metalora.methods.records import Biased
from metalora.methods.resolve import ResolvedMethod, resolve
from metalora.tensornet.forms.bottleneck import Bottleneck
from metalora.tensornet.forms.feature_wise import FeatureWiseForm


def attach(
    model: nn.Module,
    config: AdapterConfig,
    *,
    example: Inputs | None = None,
    extractor: nn.Module | None = None,
) -> Adapter:
    """Freeze a model, wrap its targets in place and return the adapter that owns the factors.

    It goes one way: targets -> resolved method -> layout -> factors -> layers.

    Args:
        model: Any torch model.
        config: Which method, on which targets, at which size.
        example: Inputs to learn the width of the features from; guessed for images and Hugging Face models.
        extractor: The frozen network of condition source "extractor"; otherwise the one that
            config.condition.extractor names.

    Raises:
        ValueError: The model has an adapter already, or is a part of one that has; an unknown method, factor or target;
            a rank that a target's modes do not allow. Nothing is changed then.

    Warns:
        UserWarning: A preset of targets leaves out weights of its kind, because they cannot be adapted; one warning
            for all, which `adapter.skipped` lists.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model(torch.rand(3, 8)).shape
        torch.Size([3, 2])
    """
    _check_no_adapter(model)
    check_not_partitioned(model, "attach")
    targets, skipped = usable_targets(model, config)
    bases = {target.path: required_base(model, target.path) for target in targets}
    # All that may raise an error is done before the model is touched; a warning may be one too.
    warning = warning_of(skipped, str(config.targets), type(model).__name__)
    if warning is not None:
        warn_user(warning)
    adapter = build(model, config, targets, bases, example=example, extractor=extractor)
    adapter.skipped = skipped
    adapter.required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    # One owner, so that .to(), .train() and .parameters() of the model reach the adapter once.
    next(iter(adapter.layers.values())).adapter = adapter
    for path in [path for path in adapter.bias_changes if path not in adapter.layers]:
        module = model.get_submodule(path)
        adapter.outside_biases[path] = OutsideBias(adapter, path, module)
        adapter.hooks.append(module.register_forward_hook(adapter.outside_biases[path]))
    _replace(model, _wrapped(adapter))
    substitute(adapter)
    adapter.frozen_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    prepares_factors = adapter.per_example or adapter.shares_factors or has_half_bases(adapter)
    if prepares_factors or adapter.frozen_norms or not adapter.started:
        host = AttachedHost(adapter, adapter.frozen_norms)
        adapter.hooks += guard_forward(model, host)
        guard_generate(model, host)
    guard_continuous_batching(model, adapter)
    adapter.hooks += guard_saving(model, adapter)  # before the next one, which looks for the names of adapted layers
    adapter.hooks += guard_state(model, adapter)
    adapter.train(model.training)
    return adapter


def _check_no_adapter(model: nn.Module) -> None:
    """Raise a ValueError if a model, or a model that it is a part of, has an adapter of some of these layers."""
    if adapter_of(model) is not None:
        raise ValueError(f"{type(model).__name__} already has an adapter: detach it first")
    for path, module in model.named_modules():
        if isinstance(module, MergeableLayer | OutputLayer):
            raise ValueError(
                f"{type(model).__name__}: {path!r} is adapted already, by an adapter of a model that this is a part "
                "of: detach that adapter first, or attach one adapter with all targets"
            )


def build(
    model: nn.Module,
    config: AdapterConfig,
    targets: Sequence[Target],
    bases: Mapping[str, nn.Module],
    *,
    example: Inputs | None = None,
    extractor: nn.Module | None = None,
) -> Adapter:
    """Make the adapter of targets and, as `adapter.layers`, a layer around each base, none of it in the model.

    The model only gets the hooks of the condition's source, `adapter.hooks`. Raises what `attach` raises.
    """
    resolved = resolve(config)
    for path, base in bases.items():
        if isinstance(base, HeldMatrix):
            _check_serves_matrices(resolved, path)
            check_matrix_present(base, path)
    layout = build_layout(targets, resolved)
    weights = BaseWeights(bases)
    shapes = bias_shapes(model, config, bases)
    adapter = Adapter(resolved, layout, initial_factors(resolved, layout, weights))
    for path, shape in shapes.items():
        adapter.biases[slot_of(f"{path}.bias")] = nn.Parameter(torch.zeros(shape))
    adapter._model = (model,)
    try:
        prepare_condition(adapter, model, example, extractor)
    except BaseException:  # also Ctrl-C during the forward that measures the features
        _remove_hooks(adapter)
        raise
    move_like(weights[targets[0].path], adapter)
    read_by_model = computed_with(model)
    for path, form in plan_forms(layout, adapter.per_example).items():
        adapter.layers[path] = _layer(adapter, path, form, bases[path])
        adapter.layers[path].is_computed_with = path in read_by_model
    mark_shared_inputs(adapter)
    return adapter


def _check_serves_matrices(resolved: ResolvedMethod, path: str) -> None:
    """Raise a ValueError if a method cannot adapt a matrix that a module reads itself: one weight serves all inputs."""
    reason = ""
    if resolved.per_example:
        reason = f"takes {', '.join(resolved.per_example)} from a condition, and one weight serves all examples there"
    elif resolved.method.form == "bottleneck":
        reason = "changes the output of a layer, and no Delta W equals it"
    elif resolved.method.has(Biased):
        reason = "also adds a bias to the output of a layer, which a matrix does not have"
    elif resolved.config.dropout:
        reason = f"has dropout={resolved.config.dropout}, which acts on the inputs of a layer: set it to 0"
    if reason:
        raise ValueError(
            f"target {path!r} is a matrix that its module reads itself, and method {resolved.name!r} {reason}; exclude "
            "it, or choose another method"
        )


def _layer(adapter: Adapter, path: str, form: Form, base: nn.Module) -> AdaptedLayer | OutputLayer:
    target = adapter.targets[path]
    if isinstance(form, Bottleneck):
        layer: AdaptedLayer | OutputLayer = BottleneckLayer(base, target, form, adapter)
    elif isinstance(form, FeatureWiseForm):
        layer = FeatureWiseLayer(base, target, form, adapter)
    else:
        layer = LAYERS[target.kind](base, target, form, adapter)
    layer.training = base.training
    return layer


def bind_layers(adapter: Adapter) -> None:
    """Bind every layer to the adapter's layout, after the layout has changed."""
    for path, form in plan_forms(adapter.layout, adapter.per_example).items():
        adapter.layers[path].bind(form)
    mark_shared_inputs(adapter)


def mark_shared_inputs(adapter: Adapter) -> None:
    """Mark the targets that may share x Left with a sibling: of one parent, reading one Left."""
    bounds = [layer.bound for layer in adapter.layers.values()]
    counts = Counter(bound.left_key for bound in bounds)
    keys = {bound.left_key: bound.left_key for bound in bounds}
    for bound in bounds:
        bound.left_key = keys[bound.left_key]  # one object for all siblings, compared by identity
        bound.shares_input = bool(bound.left_key[1]) and counts[bound.left_key] > 1


def _wrapped(adapter: Adapter) -> dict[nn.Module, nn.Module]:
    """Base -> its layer, of the targets that are modules of their own and not matrices in a module."""
    return {layer.base: layer for layer in adapter.layers.values() if not isinstance(layer.base, HeldMatrix)}


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new module wherever an old one stands: a module may have several names."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            model.set_submodule(path, new[module])


def _remove_hooks(adapter: Adapter) -> None:
    for handle in adapter.hooks:
        handle.remove()


def adapter_of(model: nn.Module) -> Adapter | None:
    """Return the adapter that is attached to a model, or None.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 2))
        >>> adapter_of(model) is None
        True
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets="0"))
        >>> adapter_of(model) is adapter
        True
    """
    return next((module for module in model.modules() if isinstance(module, Adapter)), None)


def required_adapter(model: nn.Module, verb: str) -> Adapter:
    """The adapter of a model; ValueError that names the verb if it has none.

    Example:
        >>> required_adapter(nn.Sequential(nn.Linear(8, 2)), "merge")
        Traceback (most recent call last):
        ValueError: merge: Sequential has no adapter
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{verb}: {type(model).__name__} has no adapter")
    return adapter


def detach(model: nn.Module) -> None:
    """Put the original modules back, bit for bit, with the requires_grad that they had.

    Raises:
        ValueError: The model has no adapter, or it is merged and `metalora.unmerge` refuses.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 2))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets="0"))
        >>> detach(model)
        >>> model
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    from metalora.adapters.merge import unmerge  # which needs this module

    adapter = required_adapter(model, "detach")
    unmerge(model)
    _remove_hooks(adapter)
    unguard_forward(model)
    unguard_generate(model)
    unguard_continuous_batching(model)
    unguard_saving(model)
    _replace(model, {layer: base for base, layer in _wrapped(adapter).items()})
    restore_parameters(model)
    for norm in adapter.frozen_norms:
        norm.training = model.training
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter.required_grad.get(name, True))


def count_params(config: AdapterConfig, targets: Sequence[Target], feature_size: int | None = None) -> int:
    """Return the number of trainable parameters, `adapter.num_params()`, in closed form: no model is needed.

    Args:
        config: Which method, at which size.
        targets: The weights that it adapts.
        feature_size: Number of features; None: the mapping net, which makes generated factors, is not counted.

    Raises:
        ValueError: The configuration does not fit the targets, or it also trains biases, which targets do not show:
            `metalora.plan(model, config)` counts these.

    Example:
        >>> from metalora import find_targets
        >>> targets = find_targets(nn.Sequential(nn.Linear(8, 4)), "0")
        >>> count_params(AdapterConfig("lora", rank=2), targets)
        24
    """
    if config.bias != "none":
        raise ValueError(f"count_params: bias={config.bias!r} needs the model: metalora.plan(model, config) counts it")
    resolved = resolve(config)
    layout = build_layout(targets, resolved)
    total = layout.num_params()
    shapes = layout.shapes_of(resolved.generated)
    if shapes and feature_size is not None:
        condition = config.condition
        numels = [prod(shape) for shape in shapes.values()]
        output_size = max(numels) if condition.heads == "shared" else sum(numels)
        total += condition.hidden * (feature_size + 1) + output_size * (condition.hidden + 1)
        total += len(numels) * condition.hidden if condition.heads == "shared" else 0
    return total


def move_like(weight: torch.Tensor, module: nn.Module) -> None:
    """Move a module to the device of a weight: in float64 if the weight is in float64, otherwise in float32.

    Args:
        weight: The weight of a target.
        module: The module; its tensors on the meta device stay there.

    Example:
        >>> module = nn.Linear(4, 2)
        >>> move_like(torch.zeros(1, dtype=torch.float64), module)
        >>> module.weight.dtype
        torch.float64
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # In float32 also for a base in 16 bits: the updates of an optimiser would be rounded away.
    module._apply(lambda tensor: tensor.to("meta" if tensor.is_meta else weight.device, dtype))  # type: ignore[no-untyped-call]
