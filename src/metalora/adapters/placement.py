"""Where the factors of a method live: what is stored under which key, and what each target reads of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from metalora.adapters.targets import Target
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.network.network import Network
from metalora.network.spec import INPUT_MODES, Modes

Index = int | tuple[int, int]  # one slice, or start and length


@dataclass(frozen=True)
class Stored:
    """A factor as it is stored: its name in the method, its modes and their sizes."""

    factor: str
    modes: Modes
    shape: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """What a target reads: the key of a stored factor, and an index of some of its axes (the last axis first)."""

    key: str
    picks: tuple[tuple[int, Index], ...] = ()


@dataclass(frozen=True)
class Place:
    """A target in the network: the network that is left there, the sizes of its modes, its coordinates, its views."""

    target: Target
    network: Network
    sizes: dict[str, int]
    coords: dict[str, Index]
    views: dict[str, View]


@dataclass(frozen=True)
class Placement:
    """All places by path, and all stored factors by key."""

    places: dict[str, Place]
    stored: dict[str, Stored]

    def num_params(self) -> int:
        """Closed form of the numbers in all factors: each stored factor once."""
        return sum(prod(one.shape) for one in self.stored.values())


def place(targets: Sequence[Target], config: AdapterConfig, method: Method) -> Placement:
    """Bind a method to targets; ValueError for a rank, head or width that they do not allow."""
    heads = {target.head_dim for target in targets} - {None}
    if len(heads) == 1:  # an MLP beside attention does not say it
        targets = [replace(target, head_dim=next(iter(heads))) for target in targets]
    bonds = method.bond_sizes(config.rank, config.experts)
    extra = {"expert": config.experts} if method.uses_experts else {}
    if not method.shared:
        return _own(targets, config, method, bonds, extra)
    return _shared(targets, config, method, bonds, extra)


# ---- a network of its own at every target ---------------------------------------------------------------------------
def _own(
    targets: Sequence[Target], config: AdapterConfig, method: Method, bonds: Mapping[str, int], extra: dict[str, int]
) -> Placement:
    places, stored = {}, {}
    for target in targets:
        folded, folds = _folded(target, target.sizes, config, method)
        where = f"target {target.path!r}"
        sizes = {**folded, **clipped(bonds, method.network, folded, config.clip_rank, where), **extra}
        network = method.network.at(_absent(target), folds)
        views = {f: View(f"{target.path}.{f}") for f in network.factors}
        places[target.path] = Place(target, network, sizes, {}, views)
        stored |= {v.key: Stored(f, network.factors[f], network.shape(f, sizes)) for f, v in views.items()}
    return Placement(places, stored)


def clipped(
    bonds: Mapping[str, int], network: Network, sizes: Mapping[str, int], clip: bool, where: str
) -> dict[str, int]:
    """The bonds, lowered to what the modes allow if `clip`; else ValueError for one that is above."""
    found = {}
    for bond, size in bonds.items():
        largest = network.max_rank(bond, {**sizes, **bonds})
        if size > largest and not clip:
            raise ValueError(
                f"{where}: rank {size} of bond {bond!r} is above {largest}, the smaller side of its "
                f"{dict(sizes)} (clip_rank: true lowers it where needed)"
            )
        found[bond] = min(size, largest)
    return found


def _absent(target: Target) -> list[str]:
    return [mode for mode in INPUT_MODES if mode not in target.sizes]


def _folded(
    target: Target, sizes: Mapping[str, int], config: AdapterConfig, method: Method
) -> tuple[dict[str, int], dict[str, Modes]]:
    """The sizes of the target's modes with its axes folded, and the folds."""
    sizes, folds = dict(sizes), method.network.folds
    if folds.get("out") == ("head", "hdim"):
        size = config.head_dim or target.head_dim
        if size is None:
            raise ValueError(
                f"target {target.path!r}: method {method.name!r} has heads, and the model does not say how large they "
                "are: set head_dim"
            )
        if sizes["out"] % size:
            raise ValueError(f"target {target.path!r}: its {sizes['out']} outputs are not heads of {size}")
        sizes |= {"head": sizes.pop("out") // size, "hdim": size}
    return sizes, folds


# ---- one network for all targets ------------------------------------------------------------------------------------
def _shared(
    targets: Sequence[Target], config: AdapterConfig, method: Method, bonds: Mapping[str, int], extra: dict[str, int]
) -> Placement:
    layers, roles = _layers(targets, method), dict.fromkeys(target.role for target in targets)
    width = min(min(t.sizes["in"], t.sizes["out"]) for t in targets) if config.widths == "chunk" else None
    cuts = {target.path: _pieces(target, width, method) for target in targets}
    starts, projections = {}, 0
    for role in roles:
        starts[role] = projections
        projections += max(prod(cuts[t.path].values()) for t in targets if t.role == role)
    counts = {"layer": len(set(layers.values())), "proj": projections, "task": config.tasks, **extra}
    located = {}
    for target in targets:
        pieces, sizes = cuts[target.path], dict(target.sizes)
        for axis, count in pieces.items():
            sizes[axis] //= count
        sizes, folds = _folded(target, sizes, config, method)
        coords: dict[str, Index] = {"layer": layers[target.path], "proj": starts[target.role]}
        if pieces:
            ((axis, count),) = pieces.items()
            folds = {**folds, axis: ("proj", *folds.get(axis, (axis,)))}
            coords["proj"] = (starts[target.role], count)
            sizes["proj"] = count
        located[target.path] = target, sizes, folds, coords
    return _stored_once(located, config, method, bonds, counts)


def _layers(targets: Sequence[Target], method: Method) -> dict[str, int]:
    """Path -> layer coordinate, 0 for the first layer that has a target."""
    if "layer" not in method.network.modes:
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


def _stored_once(
    located: Mapping[str, tuple], config: AdapterConfig, method: Method, bonds: Mapping[str, int], counts: dict
) -> Placement:
    network = method.network
    every = [sizes for _, sizes, _, _ in located.values()]
    largest = {mode: max(sizes.get(mode, 1) for sizes in every) for mode in network.modes if mode not in bonds}
    largest |= {mode: counts[mode] for mode in network.modes if mode in counts}
    bonds = clipped(bonds, network, largest, config.clip_rank, f"method {method.name!r}")
    whole = {**largest, **bonds}
    variants = {f: _variants(term, every, config) for f, term in network.factors.items()}
    stored, places = {}, {}
    for path, (target, sizes, folds, coords) in located.items():
        picked = [mode for mode in ("layer", "proj") if isinstance(coords[mode], int)]
        left = network.at([*_absent(target), *picked, "task"], folds)
        sizes = {**sizes, **bonds, **{mode: counts[mode] for mode in ("expert",) if mode in counts}}
        views = {}
        for factor, term in network.factors.items():
            own = [mode for mode in term if mode not in _absent(target)]
            boundary = tuple(sizes[mode] for mode in own if _is_boundary(mode))
            several = len(variants[factor]) > 1
            key = f"{factor}.{'x'.join(map(str, boundary))}" if several else factor
            full = [sizes[m] if several and _is_boundary(m) else whole[m] for m in own]
            views[factor] = View(key, _picks(own, full, sizes, coords, config, factor, method))
            kept = [k for k, mode in enumerate(own) if mode != "task" or not _made(config, method, factor)]
            stored[key] = Stored(factor, tuple(own[k] for k in kept), tuple(full[k] for k in kept))
        places[path] = Place(target, left, sizes, coords, views)
    return Placement(places, stored)


def _is_boundary(mode: str) -> bool:
    """Whether a mode is an axis of the weight, so that weights of another shape need a factor of their own."""
    return mode in (*INPUT_MODES, "out", "hdim")


def _variants(term: Modes, every: Sequence[Mapping[str, int]], config: AdapterConfig) -> set[tuple]:
    if config.widths == "max_slice":
        return {()}
    return {tuple(sizes.get(mode) for mode in term if _is_boundary(mode)) for sizes in every}


def _made(config: AdapterConfig, method: Method, factor: str) -> bool:
    """Whether a mapping net makes the factor."""
    names = method.generated if config.generated is None else config.generated
    return factor in names and config.condition.scope != "constant"


def _picks(
    own: Sequence[str], full: Sequence[int], sizes: Mapping[str, int], coords: Mapping[str, Index],
    config: AdapterConfig, factor: str, method: Method,
) -> tuple[tuple[int, Index], ...]:  # fmt: skip
    """Indices of the stored axes, without the task axis where each example has a task of its own."""
    by_example = "task" in own and (config.tasks > 1 or _made(config, method, factor))
    axes = [(mode, n) for mode, n in zip(own, full, strict=True) if mode != "task" or not by_example]
    picks: list[tuple[int, Index]] = []
    for axis, (mode, stored) in enumerate(axes):
        if mode == "task":
            picks.append((axis, 0))
        elif mode in coords:
            picks.append((axis, coords[mode]))
        elif sizes[mode] < stored:  # fewer heads, or a narrower weight: the first of the stored ones
            picks.append((axis, (0, sizes[mode])))
    return tuple(reversed(picks))
