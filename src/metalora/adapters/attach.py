"""Attach, detach, merge and unmerge: every change happens at all targets or at none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition, Conditioner
from metalora.adapters.conditioning.features import Inputs, example_input, watch_head, watch_stages
from metalora.adapters.conditioning.stages import stages
from metalora.adapters.init import initial_factors
from metalora.adapters.layers.base import LAYERS
from metalora.adapters.layers.bottleneck import BottleneckLayer
from metalora.adapters.layout import Layout, TargetLayout, build_layout
from metalora.adapters.targets import Target, find_targets
from metalora.config import AdapterConfig
from metalora.methods.resolve import resolve
from metalora.tensornet.forms.bottleneck import Bottleneck
from metalora.tensornet.forms.circuit import Circuit
from metalora.tensornet.forms.low_rank import LowRankForm
from metalora.tensornet.forms.sum import SumForm


def attach(
    model: nn.Module,
    config: AdapterConfig,
    *,
    example: Inputs | None = None,
    extractor: nn.Module | None = None,
) -> Adapter:
    """Freeze `model`, wrap its targets in place and return the adapter that owns the factors.

    example    inputs to learn the width of the features from; guessed for images and Hugging Face models
    extractor  the frozen network of condition source "extractor" (else timm makes config.condition.extractor)
    ValueError for an unknown method, factor, target, or a rank that a target's modes do not allow; nothing is changed.
    """
    if adapter_of(model) is not None:
        raise ValueError(f"{type(model).__name__} already has an adapter: detach it first")
    targets = find_targets(model, config.targets, config.exclude)
    bases = {target.path: model.get_submodule(target.path) for target in targets}
    adapter = build(model, config, targets, bases, example=example, extractor=extractor)
    adapter.required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    # One owner, so that .to(), .train() and .parameters() of the model reach the adapter once.
    next(iter(adapter.layers.values())).adapter = adapter
    _replace(model, {layer.base: layer for layer in adapter.layers.values()})
    adapter.frozen_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if adapter.per_example or adapter.frozen_norms or adapter.common:
        adapter.hooks.append(model.register_forward_pre_hook(adapter.before_forward, with_kwargs=True))
    if adapter.per_example or adapter.common:
        adapter.hooks.append(model.register_forward_hook(adapter.after_forward, always_call=True))
    adapter.train(model.training)
    return adapter


def build(
    model: nn.Module,
    config: AdapterConfig,
    targets: Sequence[Target],
    bases: Mapping[str, nn.Module],
    *,
    example: Inputs | None = None,
    extractor: nn.Module | None = None,
) -> Adapter:
    """The adapter of targets and, as `adapter.layers`, a layer around each of their bases, none of it in the model.

    The model only gets the hooks of the condition's source, `adapter.hooks`. ValueError: see `attach`.
    """
    resolved = resolve(config)
    layout = build_layout(targets, resolved)
    weights = {path: base.weight for path, base in bases.items()}
    adapter = Adapter(resolved, layout, initial_factors(resolved, layout, weights))
    adapter.model = (model,)
    try:
        _prepare_condition(adapter, model, example, extractor)
    except BaseException:
        _remove_hooks(adapter)
        raise
    move_like(bases[targets[0].path].weight, adapter)
    cuts = plans(layout, adapter.per_example)
    for path, target in adapter.targets.items():
        layer = BottleneckLayer if isinstance(cuts[path], Bottleneck) else LAYERS[target.kind]
        adapter.layers[path] = layer(bases[path], target, cuts[path], adapter)
        adapter.layers[path].training = bases[path].training
    return adapter


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new module wherever an old one stands: a module may have several names."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            model.set_submodule(path, new[module])


def _remove_hooks(adapter: Adapter) -> None:
    for handle in adapter.hooks:
        handle.remove()


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that is attached to a model, if any."""
    return next((module for module in model.modules() if isinstance(module, Adapter)), None)


def plan(place: TargetLayout, batched: Sequence[str]) -> LowRankForm | SumForm | Circuit | Bottleneck:
    """The cut of a network at a target, or what it has in its place, contractions planned with the real sizes."""
    batched = place.differing_factors(batched)
    if place.network.form != "cut":
        return {"circuit": Circuit, "bottleneck": Bottleneck}[place.network.form](place.network, place.sizes, batched)
    cuts = [LowRankForm(one, place.sizes, batched) for one in place.network.split_terms()]
    return SumForm(cuts) if len(cuts) > 1 else cuts[0]


def plans(layout: Layout, batched: Sequence[str]) -> dict[str, LowRankForm | SumForm]:
    """Path -> the cut there; one object where network and sizes are the same."""
    planned: dict[tuple, LowRankForm | SumForm] = {}
    found = {}
    for path, one in layout.targets.items():
        network = one.network
        key = (network.form, network.biases, *network.factors.items(), *network.folds.items(), *network.terms)
        key += (*one.sizes.items(), *one.handlers)
        found[path] = planned[key] if key in planned else planned.setdefault(key, plan(one, batched))
    return found


def count_params(config: AdapterConfig, targets: Sequence[Target], feature_size: int | None = None) -> int:
    """Closed form of `adapter.num_params()`, from sizes alone; `feature_size` is needed if factors are generated."""
    resolved = resolve(config)
    layout = build_layout(targets, resolved)
    total = layout.num_params()
    shapes = layout.shapes_of(resolved.generated)
    if shapes and feature_size is not None:
        condition, numels = config.condition, [prod(shape) for shape in shapes.values()]
        out = max(numels) if condition.heads == "shared" else sum(numels)
        total += condition.hidden * (feature_size + 1) + out * (condition.hidden + 1)
        total += len(numels) * condition.hidden if condition.heads == "shared" else 0
    return total


def move_like(weight: torch.Tensor, module: nn.Module) -> None:
    """Move a module to a weight's device, in float64 if the weight is, else in float32; what is on meta stays there."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    module._apply(lambda t: t.to("meta" if t.is_meta else weight.device, dtype))


def _prepare_condition(adapter: Adapter, model: nn.Module, example: Inputs | None, extractor: nn.Module | None) -> None:
    config, condition = adapter.config, adapter.config.condition
    shapes = adapter.layout.shapes_of(adapter.resolved.generated)
    if not shapes:
        return
    size = condition.feature_size
    if condition.source == "tensor":
        if size is None:
            raise ValueError("condition source 'tensor' needs condition.feature_size, the width of the tensor")
    else:
        network = _watch(adapter, model, extractor)
        if size is None:
            size = adapter.features(example_input(network) if example is None else example).shape[1]
            config = replace(config, condition=replace(condition, feature_size=size))
            adapter.resolved = replace(adapter.resolved, config=config)
    silent = [key for key in shapes if adapter.resolved.hides_features(adapter.layout.params[key].factor)]
    adapter.conditioner = Conditioner(condition, size, shapes, config.seed, silent)


def _watch(adapter: Adapter, model: nn.Module, extractor: nn.Module | None) -> nn.Module:
    """Put the hooks of the feature source on its network, and return that network."""
    condition, network = adapter.config.condition, model
    if condition.source == "extractor":
        network = extractor if extractor is not None else _timm_extractor(condition.extractor)
        network.requires_grad_(False).eval()
        adapter.extractor = (network,)
    if condition.source == "stem":
        if condition.scope != "sample":
            raise ValueError("condition source 'stem' is read in the same forward pass, so its scope must be 'sample'")
        if condition.stem is None:
            raise ValueError("condition source 'stem' needs condition.stem, the path of the module that is read")
        paths = [condition.stem]
    elif condition.source == "pooled" or (condition.source == "extractor" and not condition.stages):
        adapter.hooks += watch_head(network, adapter.recorder)
        return network
    else:
        paths = list(condition.stages) or stages(network)
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules:
            raise ValueError(f"condition: {type(network).__name__} has no module {path!r}{nearest(path, modules)}")
    adapter.hooks += watch_stages(network, paths, adapter.recorder)
    if condition.source == "stem":
        adapter.hooks.append(network.get_submodule(paths[0]).register_forward_hook(adapter.after_stem))
    return network


def _timm_extractor(name: str | None) -> nn.Module:
    if name is None:
        raise ValueError(
            "condition source 'extractor' needs condition.extractor (a timm name) or attach(extractor=...)"
        )
    import timm

    return timm.create_model(name, pretrained=True)


def detach(model: nn.Module) -> None:
    """Put the original modules back, bit for bit, with the requires_grad that they had."""
    adapter = _required(model, "detach")
    unmerge(model)
    _remove_hooks(adapter)
    _replace(model, {layer: layer.base for layer in adapter.layers.values()})
    for norm in adapter.frozen_norms:
        norm.training = model.training
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter.required_grad.get(name, True))


def _required(model: nn.Module, what: str) -> Adapter:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{what}: {type(model).__name__} has no adapter")
    return adapter


def check_untied(adapter: Adapter, what: str) -> None:
    """ValueError for a target whose weight another module uses too."""
    uses = Counter(id(p) for m in adapter.model[0].modules() for p in m.parameters(recurse=False))
    for path, layer in adapter.layers.items():
        if uses[id(layer.base.weight)] > 1:
            raise ValueError(
                f"{what}: the weight of target {path!r} is tied to another module's, which would change too"
            )


@torch.no_grad()
def merge(model: nn.Module, condition: Condition | None = None) -> None:
    """Add every Delta W to its base weight; the originals are kept, so `unmerge` restores their very bits.

    A generated adapter needs a condition of one (a snapshot). ValueError if Delta W is not finite, if a method's bias
    has none of the base to be added to, or if there is no Delta W (a bottleneck); nothing is changed.
    """
    adapter = _required(model, "merge")
    if adapter.merged:
        raise ValueError("merge: the adapter is already merged")
    condition = condition if condition is not None else adapter.fixed
    if condition is not None and len(condition) != 1:
        raise ValueError(f"merge: the condition is for {len(condition)} examples; merge one (condition.mean())")
    check_untied(adapter, "merge")
    values, merged, shifts = None if condition is None else condition.values, {}, {}
    for path, layer in adapter.layers.items():
        weight, delta = layer.base.weight, adapter.delta(path, condition)
        if not torch.isfinite(delta).all():
            raise ValueError(f"merge: NaNs detected in the merged weights of target {path!r}")
        merged[path] = (weight.to(delta.dtype) + delta).to(weight.dtype)
        shifts[path] = layer.bias_to_merge(values)
    for path, layer in adapter.layers.items():
        layer.original = layer.base.weight.detach().clone()
        layer.base.weight.data.copy_(merged[path])
        layer.merge_bias(shifts[path])


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Restore the base weights that `merge` kept, bit for bit; a model that is not merged is left as it is."""
    for layer in _required(model, "unmerge").layers.values():
        if layer.original is not None:
            layer.base.weight.data.copy_(layer.original)
            layer.original = None
            layer.unmerge_bias()
