"""Lay out the factors of a method over the targets of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from metalora.adapters.layout.bonds import bond_sizes
from metalora.adapters.layout.coordinates import LocatedTarget, group_by_owner, largest_sizes, locate_targets
from metalora.adapters.layout.records import FactorParam, FactorSlice, Index, Layout, TargetLayout
from metalora.adapters.mechanisms import bind_mechanisms
from metalora.adapters.targets import Target
from metalora.methods.resolve import ResolvedMethod
from metalora.tensornet.network import transpose_axes
from metalora.tensornet.spec import Modes


def build_layout(targets: Sequence[Target], resolved: ResolvedMethod) -> Layout:
    """Lay out the factors of a method over targets; needs sizes only, no weights.

    Args:
        targets: The targets, in the model's order.
        resolved: The method.

    Raises:
        ValueError: A rank, head size, width or number of digits that the targets do not allow; a generated factor that
            no target reads; a bias at an embedding.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, find_targets
        >>> from metalora.methods.resolve import resolve
        >>> block = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> targets = find_targets(nn.ModuleDict({"layers": nn.ModuleList([block])}), "query,value")
        >>> layout = build_layout(targets, resolve(AdapterConfig("lotr", rank=2)))
        >>> {key: param.shape for key, param in layout.params.items()}
        {'U': (8, 2), 'C': (2, 1, 2, 2), 'V': (2, 8)}
        >>> layout.params["C"].modes
        ('r1', 'layer', 'proj', 'r2')
        >>> layout.targets["layers.0.value"].views["C"].index  # projection 1 of layer 0, the last axis first
        ((2, 1), (1, 0))
    """
    targets = _with_head_size(targets)
    layout = _build_components(targets, resolved) if resolved.method.components else _build(targets, resolved)
    _check_biases(layout, resolved)
    _check_generated(layout, resolved)
    return layout


def _with_head_size(targets: Sequence[Target]) -> list[Target]:
    """Targets that do not know their head size get that of the others: an MLP next to attention does not say it."""
    head_sizes = {target.head_dim for target in targets} - {None}
    if len(head_sizes) != 1:
        return list(targets)
    [head_size] = head_sizes
    return [replace(target, head_dim=head_size) for target in targets]


def _build_components(targets: Sequence[Target], resolved: ResolvedMethod) -> Layout:
    """The layout of a method that consists of several, each on the targets that it applies to."""
    config, method = resolved.config, resolved.method
    if config.rank_pattern:
        raise ValueError(
            f"method {method.name!r} consists of methods with bonds of their own: set their ranks by name instead"
        )
    ranks = method.bond_sizes(config.rank, resolved.experts)
    by_path: dict[str, TargetLayout] = {}
    params: dict[str, FactorParam] = {}
    for component in method.components:
        accepted = [target for target in targets if component.accepts(target.heads)]
        if not accepted:
            continue
        own_ranks = {bond: ranks[bond] for bond in component.method.rank_bonds}
        component_method = replace(resolved, method=component.method, config=replace(config, rank=own_ranks))
        layout = _build(_with_head_size(accepted), component_method)
        by_path |= layout.targets
        params |= layout.params
    # In the model's order again: the components have their own.
    return Layout({target.path: by_path[target.path] for target in targets}, params)


@dataclass(frozen=True)
class _SharedSizes:
    """Sizes of the modes of one copy of a factor, over all targets that read it.

    Attributes:
        several_widths: True if the axes of the weight have several sizes, so that there is a variant for each.
        largest: Mode -> its largest size.
    """

    several_widths: bool
    largest: dict[str, int]


def _build(targets: Sequence[Target], resolved: ResolvedMethod) -> Layout:
    network = resolved.method.network
    located, counts = locate_targets(targets, resolved)
    bonds = bond_sizes(located, counts, resolved)
    shared = _shared_sizes(located, resolved)
    params: dict[str, FactorParam] = {}
    by_path: dict[str, TargetLayout] = {}
    for path, target in located.items():
        sizes = {**target.sizes, **bonds[path]}
        if "expert" in counts:
            sizes["expert"] = counts["expert"]
        views = {}
        for factor in network.factors:
            copy = shared[factor, target.owner(resolved.method.replication_of(factor))]
            stored_sizes = {**copy.largest, **counts, **bonds[path]}
            own_sizes = {**sizes, **target.sizes_for(factor, resolved.method)}
            views[factor], param = _place_factor(factor, target, own_sizes, stored_sizes, copy.several_widths, resolved)
            params[views[factor].key] = param
        by_path[path] = _target_layout(target, sizes, views, resolved)
    return Layout(by_path, params)


def _target_layout(
    target: LocatedTarget, sizes: dict[str, int], views: dict[str, FactorSlice], resolved: ResolvedMethod
) -> TargetLayout:
    """The network that is left at a target: absent modes, tasks and indexed coordinates are gone."""
    # A projection that is one of several in the weight (a fused qkv) stays a mode of the network.
    indexed = [mode for mode, index in target.coords.items() if isinstance(index, int)]
    network = resolved.method.network.without_modes([*target.absent_modes, *indexed, "task"], target.folds)
    if target.transposed:
        network, sizes = network.transposed(), transpose_axes(sizes)
    network, handlers = bind_mechanisms(resolved.method.mechanisms, network, sizes)
    return TargetLayout(target.target, network, sizes, target.coords, views, handlers)


def _shared_sizes(
    located: Mapping[str, LocatedTarget], resolved: ResolvedMethod
) -> dict[tuple[str, str], _SharedSizes]:
    """(factor, owner) -> the sizes of that copy of the factor."""
    method = resolved.method
    shared = {}
    for factor, modes in method.network.factors.items():
        # Bonds, layers and tasks have one size for all readers; only axes of the weight may differ.
        edges = [mode for mode in modes if mode in method.network.weight_modes]
        for owner, paths in group_by_owner(located, method.replication_of(factor)).items():
            readers = [located[path].sizes_for(factor, method) for path in paths]
            widths = {tuple(sizes.get(mode) for mode in edges) for sizes in readers}
            several_widths = resolved.config.widths != "max_slice" and len(widths) > 1
            shared[factor, owner] = _SharedSizes(several_widths, largest_sizes(readers))
    return shared


def _place_factor(
    factor: str,
    target: LocatedTarget,
    sizes: Mapping[str, int],
    stored_sizes: Mapping[str, int],
    several_widths: bool,
    resolved: ResolvedMethod,
) -> tuple[FactorSlice, FactorParam]:
    """How a factor is stored, and what a target reads of it.

    Args:
        factor: Name of the factor.
        target: The target.
        sizes: Sizes of the modes at the target.
        stored_sizes: The largest sizes of all targets that read the same copy.
        several_widths: True if the weights of these targets have several widths, so that the factor is stored for each.
        resolved: The method.
    """
    network, owner = resolved.method.network, target.owner(resolved.method.replication_of(factor))
    modes = [mode for mode in network.factors[factor] if mode not in target.absent_modes]
    edges = [mode for mode in modes if mode in network.weight_modes]
    # With one width for all, the largest sizes are stored, and a target with fewer heads reads the first ones.
    shape = [sizes[mode] if several_widths and mode in edges else stored_sizes[mode] for mode in modes]
    width = "x".join(str(sizes[mode]) for mode in edges) if several_widths else ""
    key = ".".join(word for word in (owner, factor, width) if word)
    index = _index(factor, modes, shape, sizes, target.coords, resolved)
    # A generated factor has no task axis: the condition takes the place of the tasks.
    dropped = "task" if factor in resolved.generated else ""
    axes = [(mode, size) for mode, size in zip(modes, shape, strict=True) if mode != dropped]
    stored_modes: Modes = tuple(mode for mode, _ in axes)
    stored_shape = tuple(size for _, size in axes)
    frozen = factor in resolved.frozen
    return FactorSlice(key, index), FactorParam(factor, stored_modes, stored_shape, owner, frozen)


def _index(
    factor: str,
    modes: Sequence[str],
    shape: Sequence[int],
    sizes: Mapping[str, int],
    coords: Mapping[str, Index],
    resolved: ResolvedMethod,
) -> tuple[tuple[int, Index], ...]:
    """What a target reads of the stored axes; without the task axis if each example has a task of its own."""
    axes = list(zip(modes, shape, strict=True))
    if factor in resolved.per_example:
        axes = [(mode, size) for mode, size in axes if mode != "task"]
    index: list[tuple[int, Index]] = []
    for axis, (mode, stored_size) in enumerate(axes):
        if mode == "task":
            index.append((axis, 0))
        elif mode in coords:
            index.append((axis, coords[mode]))
        elif sizes[mode] < stored_size:  # fewer heads, or a narrower weight: the first of the stored ones
            index.append((axis, (0, sizes[mode])))
    return tuple(reversed(index))  # the last axis first: `select` removes an axis, and those before it stay


def _check_biases(layout: Layout, resolved: ResolvedMethod) -> None:
    for path, target in layout.targets.items():
        # A bottleneck has its biases behind the activation, not in the base's bias.
        if target.bias_factors and target.network.form != "bottleneck" and target.target.kind == "embedding":
            raise ValueError(f"target {path!r}: method {resolved.name!r} has biases there, and an embedding has none")


def _check_generated(layout: Layout, resolved: ResolvedMethod) -> None:
    read = {param.factor for param in layout.params.values()}
    for name in resolved.config.generated or ():
        if name not in read:
            raise ValueError(
                f"method {resolved.name!r}: generated names factor {name!r}, which none of the targets reads "
                f"(they read {', '.join(sorted(read))})"
            )
