"""Attach, detach, merge and unmerge: every change happens at all targets or at none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import nn

from metalora.adapters.adapter import Adapter, factor_key
from metalora.adapters.conditioning import Condition, Conditioner
from metalora.adapters.features import Inputs, example_input, watch_head, watch_stages
from metalora.adapters.init import initial
from metalora.adapters.layers import LAYERS
from metalora.adapters.stages import stages
from metalora.adapters.targets import Target, find_targets
from metalora.config import AdapterConfig, nearest
from metalora.methods.method import Method
from metalora.methods.registry import get_method
from metalora.network.cut import Cut
from metalora.network.network import Network
from metalora.network.spec import INPUT_MODES


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
    method = get_method(config.method)
    _check_factors(config, method)
    targets = [bind_sizes(t, config, method) for t in find_targets(model, config.targets, config.exclude)]
    adapter = Adapter(config, method, targets, _initial_factors(config, method, targets))
    device, dtype = _placement(model, targets)
    adapter.to(device=device, dtype=dtype)
    adapter.required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    adapter.model = (model,)
    try:
        _prepare_condition(adapter, model, example, extractor)
    except BaseException:
        _remove_hooks(adapter)
        raise
    model.requires_grad_(False)
    batched = adapter.generated if adapter.conditional else ()
    for target in targets:
        base = model.get_submodule(target.path)
        adapter.layers[target.path] = LAYERS[target.kind](base, target, plan(method, target, batched), adapter)
        adapter.layers[target.path].training = base.training
    # One owner, so that .to(), .train() and .parameters() of the model reach the adapter once.
    adapter.layers[targets[0].path].adapter = adapter
    _replace(model, {layer.base: layer for layer in adapter.layers.values()})
    adapter.frozen_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if adapter.conditional or adapter.frozen_norms:
        adapter.hooks.append(model.register_forward_pre_hook(adapter.before_forward, with_kwargs=True))
    if adapter.conditional:
        adapter.hooks.append(model.register_forward_hook(adapter.after_forward, always_call=True))
    adapter.train(model.training)
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


def target_network(method: Method, target: Target) -> Network:
    """The method's network at a target: modes that its weight does not have (kh, kw of a Linear) drop out."""
    absent = [mode for mode in INPUT_MODES if mode not in target.sizes]
    return method.network.at([*absent, *target.coords])


def plan(method: Method, target: Target, batched: Sequence[str]) -> Cut:
    """The cut of a method at a target, contractions planned with the real sizes."""
    return Cut(target_network(method, target), target.sizes, batched)


def bind_sizes(target: Target, config: AdapterConfig, method: Method) -> Target:
    """The target with the sizes of its bonds and of the expert mode; ValueError for a rank its modes do not allow."""
    bonds = method.bond_sizes(config.rank, config.experts)
    for bond, size in bonds.items():
        largest = method.network.max_rank(bond, target.sizes)
        if size > largest and not config.clip_rank:
            raise ValueError(
                f"target {target.path!r}: rank {size} of bond {bond!r} is above {largest}, the smaller side of its "
                f"{ {m: n for m, n in target.sizes.items()} } (clip_rank: true lowers it where needed)"
            )
        bonds[bond] = min(size, largest)
    experts = {"expert": config.experts} if method.uses_experts else {}
    return replace(target, sizes={**target.sizes, **bonds, **experts})


def count_params(config: AdapterConfig, targets: Sequence[Target], feature_size: int | None = None) -> int:
    """Closed form of `adapter.num_params()`, from sizes alone; `feature_size` is needed if factors are generated."""
    method = get_method(config.method)
    bound = [bind_sizes(t, config, method) for t in targets]
    total = sum(target_network(method, t).num_params(t.sizes) for t in bound)
    shapes = generated_shapes(config, method, bound)
    if shapes and feature_size is not None:
        condition, numels = config.condition, [prod(shape) for shape in shapes.values()]
        out = max(numels) if condition.heads == "shared" else sum(numels)
        total += condition.hidden * (feature_size + 1) + out * (condition.hidden + 1)
        total += len(numels) * condition.hidden if condition.heads == "shared" else 0
    return total


def generated_shapes(config: AdapterConfig, method: Method, targets: Sequence[Target]) -> dict[str, tuple[int, ...]]:
    """Factor key -> shape of everything that the mapping net makes; empty for scope=constant."""
    factors = method.generated if config.generated is None else config.generated
    if config.condition.scope == "constant":
        return {}
    return {factor_key(t.path, f): target_network(method, t).shape(f, t.sizes) for t in targets for f in factors}


def _check_factors(config: AdapterConfig, method: Method) -> None:
    for option, names in (("generated", config.generated or ()), ("init", config.init)):
        for name in names:
            if name not in method.factors:
                raise ValueError(
                    f"method {method.name!r}: {option} names factor {name!r}{nearest(name, method.factors)}"
                )
    inits = {**method.init, **config.init}
    zeros = [factor for factor, kind in inits.items() if kind == "zeros" and factor not in method.gates]
    if len(zeros) > 1:
        raise ValueError(
            f"method {method.name!r}: factors {', '.join(zeros)} all start at zero, so no gradient would ever reach any"
        )


def _initial_factors(config: AdapterConfig, method: Method, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    inits, factors = {**method.init, **config.init}, {}
    for target in targets:
        network = target_network(method, target)
        for factor, modes in network.factors.items():
            key = factor_key(target.path, factor)
            factors[key] = initial(inits[factor], modes, network.shape(factor, target.sizes), config.seed, key)
    return factors


def _placement(model: nn.Module, targets: Sequence[Target]) -> tuple[torch.device, torch.dtype]:
    weight = model.get_submodule(targets[0].path).weight
    return weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32


def _prepare_condition(adapter: Adapter, model: nn.Module, example: Inputs | None, extractor: nn.Module | None) -> None:
    config, condition = adapter.config, adapter.config.condition
    shapes = generated_shapes(config, adapter.method, list(adapter.targets.values()))
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
            adapter.config = replace(config, condition=replace(condition, feature_size=size))
    device, dtype = next(adapter.parameters()).device, next(adapter.parameters()).dtype
    inits = {**adapter.method.init, **config.init}
    silent = [
        k for k in shapes if inits[k.rpartition(".")[2]] == "zeros" and k.rpartition(".")[2] not in adapter.method.gates
    ]
    adapter.conditioner = Conditioner(condition, size, shapes, config.seed, silent).to(device, dtype)


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


@torch.no_grad()
def merge(model: nn.Module, condition: Condition | None = None) -> None:
    """Add every Delta W to its base weight; the originals are kept, so `unmerge` restores their very bits.

    A generated adapter needs a condition of one (a snapshot). ValueError if Delta W is not finite; nothing is changed.
    """
    adapter = _required(model, "merge")
    if adapter.merged:
        raise ValueError("merge: the adapter is already merged")
    condition = condition if condition is not None else adapter.fixed
    if condition is not None and len(condition) != 1:
        raise ValueError(f"merge: the condition is for {len(condition)} examples; merge one (condition.mean())")
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    merged = {}
    for path, layer in adapter.layers.items():
        if uses[id(layer.base.weight)] > 1:
            raise ValueError(
                f"merge: the weight of target {path!r} is tied to another module's, which would change too"
            )
        weight, delta = layer.base.weight, adapter.delta(path, condition)
        if not torch.isfinite(delta).all():
            raise ValueError(f"merge: NaNs detected in the merged weights of target {path!r}")
        merged[path] = (weight.to(delta.dtype) + delta).to(weight.dtype)
    for path, layer in adapter.layers.items():
        layer.original = layer.base.weight.detach().clone()
        layer.base.weight.data.copy_(merged[path])


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Restore the base weights that `merge` kept, bit for bit; a model that is not merged is left as it is."""
    for layer in _required(model, "unmerge").layers.values():
        if layer.original is not None:
            layer.base.weight.data.copy_(layer.original)
            layer.original = None
