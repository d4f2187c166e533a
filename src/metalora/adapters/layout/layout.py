"""Where the factors of a method live: what is stored under which key, and what each target reads of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from torch import Tensor

from metalora._util.suggest import nearest
from metalora.adapters.layout.axes import axes_of, folded
from metalora.adapters.targets import Target, matches
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.tensornet.network import Network, turned
from metalora.tensornet.spec import INPUT_MODES, Modes

Index = int | tuple[int, int]  # one slice, or start and length


@dataclass(frozen=True)
class FactorParam:
    """A factor as it is stored: its name in the method, its modes, their sizes, whose it is, and whether it is learned.

    owner: a target's path, a layer or a projection ("layer0.proj1"), "" for the whole model
    """

    factor: str
    modes: Modes
    shape: tuple[int, ...]
    owner: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class FactorSlice:
    """What a target reads: the key of a stored factor, and an index of some of its axes (the last axis first)."""

    key: str
    index: tuple[tuple[int, Index], ...] = ()


@dataclass(frozen=True)
class CompositeFactor:
    """A factor of a target's network that is a contraction of others, which the target reads.

    modes: those of the contraction; shape: the sizes of the factor's own modes, which may be the same numbers otherwise
    """

    parts: tuple[str, ...]
    terms: tuple[Modes, ...]
    modes: Modes
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TargetLayout:
    """A target in the network: the network that is left there, the sizes of its modes, its coordinates, its views.

    made: factors of the network that are products of others, which the target reads
    """

    target: Target
    network: Network
    sizes: dict[str, int]
    coords: dict[str, Index]
    views: dict[str, FactorSlice]
    made: dict[str, CompositeFactor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """All places by path, and all stored factors by key."""

    targets: dict[str, TargetLayout]
    params: dict[str, FactorParam]

    def num_params(self) -> int:
        """Closed form of the learned numbers in all factors: each stored factor once."""
        return sum(prod(one.shape) for one in self.params.values() if not one.frozen)


def build_layout(targets: Sequence[Target], config: AdapterConfig, method: Method) -> Layout:
    """Bind a method to targets; ValueError for a rank, head or width that they do not allow."""
    heads = {target.head_dim for target in targets} - {None}
    if len(heads) == 1:  # an MLP beside attention does not say it
        targets = [replace(target, head_dim=next(iter(heads))) for target in targets]
    if method.parts:
        return _placed_apart(targets, config, method)
    located, counts = _located(targets, config, method)
    bonds = _bonds(located, counts, config, method)
    wholes = {  # factor, owner -> whether it has variants, and the largest sizes: once for all targets that read it
        (factor, owner): _whole(factor, [located[path] for path in paths], config, method)
        for factor in method.network.factors
        for owner, paths in _grouped(located, method.copies_of(factor)).items()
    }
    stored, places = {}, {}
    for path, one in located.items():
        sizes = {**one.sizes, **bonds[path], **{mode: n for mode, n in counts.items() if mode == "expert"}}
        views = {}
        for factor in method.network.factors:
            several, largest = wholes[factor, one.owner(method.copies_of(factor))]
            common = {**largest, **counts, **bonds[path]}
            own = {**sizes, **one.seen(factor, method)}
            key, view, what = _stored(factor, one, several, own, common, config, method)
            views[factor], stored[key] = FactorSlice(key, view), what
        picked = [mode for mode, index in one.coords.items() if isinstance(index, int)]
        left = method.network.at([*_absent(one.target), *picked, "task"], one.folds)
        if one.turned:
            left, sizes = left.turned(), turned(sizes)
        left, made = _composed(left, sizes, method)
        places[path] = TargetLayout(one.target, left, sizes, one.coords, views, made)
    return Layout(places, stored)


def _composed(network: Network, sizes: Mapping[str, int], method: Method) -> tuple[Network, dict[str, CompositeFactor]]:
    """The network with the method's made factors in place of what they are made of."""
    found = {}
    for name, spec in method.made.items():
        parts = tuple(spec.split())
        terms = tuple(network.factors[part] for part in parts)
        every = [mode for term in terms for mode in term]
        modes = tuple(mode for mode in every if every.count(mode) == 1)
        own = modes
        if method.mixed_slices and "proj" in modes:
            a, b, slices = modes
            own = (b, slices, a) if "proj" in network.inputs else (a, slices, b)
        found[name] = CompositeFactor(parts, terms, modes, tuple(sizes[mode] for mode in own))
        network = network.composed(name, parts, own)
    return network, found


def _placed_apart(targets: Sequence[Target], config: AdapterConfig, method: Method) -> Layout:
    """Every part of a method on the targets that it takes."""
    if config.rank_pattern:
        raise ValueError(f"method {method.name!r} has parts with bonds of their own: set their ranks by name instead")
    sizes = method.bond_sizes(config.rank, config.experts)
    places, stored = {}, {}
    for part in method.parts:
        own = [target for target in targets if part.takes(target.heads)]
        if own:
            placed = build_layout(own, replace(config, rank={bond: sizes[bond] for bond in part.ranked}), part)
            places, stored = {**places, **placed.targets}, {**stored, **placed.params}
    return Layout({target.path: places[target.path] for target in targets}, stored)


def _stored(
    factor: str, one: _Located, several: bool, sizes: Mapping[str, int], common: Mapping[str, int],
    config: AdapterConfig, method: Method,
) -> tuple[str, tuple[tuple[int, Index], ...], FactorParam]:  # fmt: skip
    """The key of the factor that a target reads, what it reads of it, and how it is stored.

    sizes: of the target's modes; common: the largest of all that read the same copy; several: they have several sizes
    """
    network, copies = method.network, method.copies_of(factor)
    own = [mode for mode in network.factors[factor] if mode not in _absent(one.target)]
    edges = [mode for mode in network.factors[factor] if mode in network.edges]
    full = [sizes[m] if several and m in edges else common[m] for m in own]
    width = "x".join(str(sizes[mode]) for mode in own if mode in edges) if several else ""
    key = ".".join(word for word in (one.owner(copies), factor, width) if word)
    index = _picks(own, full, sizes, one.coords, config, factor, method)
    kept = [k for k, mode in enumerate(own) if mode != "task" or not is_generated(config, method, factor)]
    modes, shape = tuple(own[k] for k in kept), tuple(full[k] for k in kept)
    return key, index, FactorParam(factor, modes, shape, one.owner(copies), factor in {*method.fixed, *config.frozen})


@dataclass(frozen=True)
class _Located:
    """A target with the sizes of its modes (axes folded), the folds, and its coordinates as far as they matter.

    turned: the network is declared for the transpose of this weight, so sizes and folds are the transpose's
    """

    target: Target
    sizes: dict[str, int]
    folds: Mapping[str, Modes]
    coords: dict[str, Index]
    turned: bool = False

    def seen(self, factor: str, method: Method) -> dict[str, int]:
        """The sizes of its modes as a factor sees them: a bias has the whole output."""
        return {**self.sizes, "out": self.target.sizes["out"]} if factor in method.biases else self.sizes

    def owner(self, copies: Collection[str]) -> str:
        """Who has the copy that this target reads: itself, a layer or a projection, or "" for the whole model."""
        if "target" in copies:
            return self.target.path
        numbers = {m: self.coords[m] for m in ("layer", "proj") if m in copies}
        return ".".join(f"{m}{n if isinstance(n, int) else n[0]}" for m, n in numbers.items())


def _grouped(located: Mapping[str, _Located], copies: Collection[str]) -> dict[str, list[str]]:
    """Owner -> the paths of the targets that read its copy."""
    found: dict[str, list[str]] = {}
    for path, one in located.items():
        found.setdefault(one.owner(copies), []).append(path)
    return found


def _largest(every: Sequence[Mapping[str, int]]) -> dict[str, int]:
    modes = dict.fromkeys(mode for sizes in every for mode in sizes)
    return {mode: max(sizes.get(mode, 1) for sizes in every) for mode in modes}


def _absent(target: Target) -> list[str]:
    return [mode for mode in INPUT_MODES if mode not in target.sizes]


# ---- sizes of bonds -------------------------------------------------------------------------------------------------
def _bonds(
    located: Mapping[str, _Located], counts: Mapping[str, int], config: AdapterConfig, method: Method
) -> dict[str, dict[str, int]]:
    """Path -> bond -> size; the same for all targets that read a copy of some factor with the bond in common."""
    network, sizes_for = method.network, ranks(located, config)
    wanted_for = {rank: method.bond_sizes(rank, config.experts) for rank in {*sizes_for.values()}}
    every, tied = method.bond_sizes(config.rank, config.experts), method.wires.items()
    found = {path: {bond: one.sizes.get(to, to) for bond, to in tied} for path, one in located.items()}
    for bond in every:
        copies = frozenset.intersection(*(method.copies_of(f) for f, term in network.factors.items() if bond in term))
        for paths in _grouped(located, copies).values():
            sizes = {**_largest([located[path].sizes for path in paths]), **counts}
            where = f"target {paths[0]!r}" if "target" in copies else f"method {method.name!r}"
            wanted = wanted_for.get(_common_rank(paths, sizes_for, method), every)
            size = _clipped(bond, wanted, sizes, config, method, where)
            for path in paths:
                found[path][bond] = size
    return found


def ranks(paths: Collection[str], config: AdapterConfig) -> dict[str, int]:
    """The rank of the paths that `config.rank_pattern` names; ValueError for a pattern that names none."""
    found: dict[str, int] = {}
    for pattern, rank in config.rank_pattern.items():
        named = [pattern] if pattern in paths else [path for path in paths if matches(path, pattern)]
        if not named:
            raise ValueError(f"rank_pattern {pattern!r} matches no target{nearest(pattern, paths)[:300]}")
        found = {**dict.fromkeys(named, rank), **found}
    return found


def _common_rank(paths: Sequence[str], sizes: Mapping[str, int], method: Method) -> int | None:
    """The rank of targets that have a bond in common, None for the configured one; ValueError if they differ."""
    wanted = {sizes.get(path): path for path in paths}
    if len(wanted) > 1:
        one, other = list(wanted.values())[:2]
        raise ValueError(
            f"method {method.name!r}: rank_pattern gives {one!r} and {other!r} unequal ranks, and they have factors in "
            "common; set the rank of each bond by name instead"
        )
    return next(iter(wanted))


def _clipped(
    bond: str, wanted: Mapping[str, int], sizes: Mapping[str, int], config: AdapterConfig, method: Method, where: str
) -> int:
    """The bond's size, lowered to what the modes allow if so configured; else ValueError for one that is above."""
    size, largest = wanted[bond], method.network.max_rank(bond, {**sizes, **wanted})
    if size > largest and not config.clip_rank and not method.any_rank:
        own = {mode: n for mode, n in sizes.items() if mode in method.network.modes}
        raise ValueError(
            f"{where}: rank {size} of bond {bond!r} is above {largest}, the smaller side of its {own} "
            "(clip_rank: true lowers it where needed)"
        )
    return min(size, largest) if config.clip_rank else size


# ---- layers, projections and pieces ---------------------------------------------------------------------------------
def _located(
    targets: Sequence[Target], config: AdapterConfig, method: Method
) -> tuple[dict[str, _Located], dict[str, int]]:
    """Every target in its place by path, and the sizes of the modes that all have in common."""
    layers, roles = _layers(targets, method), dict.fromkeys(target.role for target in targets)
    width = min(min(t.sizes["in"], t.sizes["out"]) for t in targets) if config.widths == "chunk" else None
    cuts = {target.path: _pieces(target, width, method) for target in targets}
    starts, projections = {}, 0
    for role in roles:
        starts[role] = projections
        projections += max(prod(cuts[t.path].values()) for t in targets if t.role == role)
    counts = {"layer": len(set(layers.values())), "proj": projections, "task": config.tasks, "expert": config.experts}
    located = {}
    for target in targets:
        turn = _turns(cuts[target.path], target, method)
        sizes, pieces = axes_of(target, config, method), cuts[target.path]
        sizes, pieces = (turned(sizes), turned(pieces)) if turn else (sizes, pieces)
        for axis, count in pieces.items():
            sizes[axis] //= count
        sizes, folds = folded(target, sizes, config, method)
        coords: dict[str, Index] = {"layer": layers[target.path], "proj": starts[target.role]}
        if pieces:
            ((axis, count),) = pieces.items()
            folds = {**folds, axis: ("proj", *folds.get(axis, (axis,)))}
            coords["proj"] = (starts[target.role], count)
            sizes["proj"] = count
        coords = {mode: index for mode, index in coords.items() if mode in method.coordinates}
        located[target.path] = _Located(target, sizes, folds, coords, turn)
    return located, {mode: n for mode, n in counts.items() if mode in method.network.modes}


def _layers(targets: Sequence[Target], method: Method) -> dict[str, int]:
    """Path -> layer coordinate, 0 for the first layer that has a target."""
    if "layer" not in method.coordinates:
        return dict.fromkeys((target.path for target in targets), 0)
    for target in targets:
        if target.layer is None:
            raise ValueError(
                f"target {target.path!r}: method {method.name!r} numbers the layers, and this path has no number of a "
                "layer; exclude it or name targets inside the layers"
            )
    numbers = {layer: k for k, layer in enumerate(sorted({target.layer for target in targets}))}
    return {target.path: numbers[target.layer] for target in targets}


def _pieces(target: Target, width: int | None, method: Method) -> dict[str, int]:
    """The axis of a weight that holds several projections, and how many: a fused qkv, or squares of `width`."""
    if "proj" not in method.network.modes:
        return {}
    if width is None:
        return {"out": target.parts} if target.parts > 1 else {}
    found = {}
    for axis in ("in", "out"):
        if target.sizes[axis] % width:
            raise ValueError(f"target {target.path!r}: {axis}={target.sizes[axis]} is not cut into chunks of {width}")
        if target.sizes[axis] > width:
            found[axis] = target.sizes[axis] // width
    if len(found) > 1:
        raise ValueError(
            f"target {target.path!r}: widths 'chunk' cuts one side of a weight, and both of {target.sizes} are wider "
            f"than {width}: use per_shape or max_slice"
        )
    return found


def _turns(pieces: Mapping[str, int], target: Target, method: Method) -> bool:
    """Whether the network is that of the weight's transpose here, by the method's own rule."""
    if method.turned == "heads":
        return target.heads == "in"
    return method.turned == "chunks" and "in" not in pieces


def _whole(
    factor: str, peers: Sequence[_Located], config: AdapterConfig, method: Method
) -> tuple[bool, dict[str, int]]:
    """Whether a copy's own axes of the weight have several sizes, which need a factor each, unless they are slices of
    one; and the largest of each mode.
    """
    edges = [mode for mode in method.network.factors[factor] if mode in method.network.edges]
    every = [one.seen(factor, method) for one in peers]
    several = config.widths != "max_slice" and len({tuple(sizes.get(mode) for mode in edges) for sizes in every}) > 1
    return several, _largest(every)


def is_generated(config: AdapterConfig, method: Method, factor: str) -> bool:
    """Whether a mapping net makes the factor."""
    names = method.generated if config.generated is None else config.generated
    return factor in names and config.condition.scope != "constant"


def _picks(
    own: Sequence[str], full: Sequence[int], sizes: Mapping[str, int], coords: Mapping[str, Index],
    config: AdapterConfig, factor: str, method: Method,
) -> tuple[tuple[int, Index], ...]:  # fmt: skip
    """Indices of the stored axes, without the task axis where each example has a task of its own."""
    by_example = "task" in own and (config.tasks > 1 or is_generated(config, method, factor))
    axes = [(mode, n) for mode, n in zip(own, full, strict=True) if mode != "task" or not by_example]
    index: list[tuple[int, Index]] = []
    for axis, (mode, stored) in enumerate(axes):
        if mode == "task":
            index.append((axis, 0))
        elif mode in coords:
            index.append((axis, coords[mode]))
        elif sizes[mode] < stored:  # fewer heads, or a narrower weight: the first of the stored ones
            index.append((axis, (0, sizes[mode])))
    return tuple(reversed(index))


def read_slice(value: Tensor, view: FactorSlice, offset: int = 0) -> Tensor:
    """What a target reads of a stored factor, whose axes come after `offset` others."""
    for axis, index in view.index:
        if isinstance(index, int):
            value = value.select(axis + offset, index)
        else:
            value = value.narrow(axis + offset, *index)
    return value


def stack_axes(layout: Layout) -> dict[str, int]:
    """Key -> the axis by whose single slices the targets read a stored factor."""
    axes: dict[str, int] = {}
    for place in layout.targets.values():
        for view in place.views.values():
            single = [axis for axis, index in view.index if isinstance(index, int)]
            if single and "task" not in layout.params[view.key].modes:
                axes.setdefault(view.key, single[-1])
    return axes
