"""Where every target is: its layer, its projections, and the axis of the weight that is cut into them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from metalora.adapters.layout.axes import fold_axes, network_axes
from metalora.adapters.layout.records import Index
from metalora.adapters.targets import Target
from metalora.methods.method import Method
from metalora.methods.records import Transposed
from metalora.methods.resolve import ResolvedMethod
from metalora.tensornet.network import transpose_axes
from metalora.tensornet.spec import INPUT_MODES, Modes


@dataclass(frozen=True)
class LocatedTarget:
    """A target with its modes and its coordinates.

    Attributes:
        target: The target.
        sizes: Sizes of its modes, with folded axes.
        folds: Axis -> the modes that it is folded into.
        coords: Layer and projection, as far as the method counts them.
        transposed: True if the network is that of the transpose of this weight; sizes and folds are the transpose's.
    """

    target: Target
    sizes: dict[str, int]
    folds: Mapping[str, Modes]
    coords: dict[str, Index]
    transposed: bool = False

    def sizes_for(self, factor: str, method: Method) -> dict[str, int]:
        """Sizes of the modes as a factor has them: a bias has the whole output axis."""
        if factor in method.separate_factors:
            return {**self.sizes, "out": self.target.sizes["out"]}
        return self.sizes

    def owner(self, replication: Collection[str]) -> str:
        """Who has the copy of a factor that this target reads: itself, a layer or a projection, or "" for the model.

        Args:
            replication: The coordinates that have a copy each, as `Method.replication_of` gives them.
        """
        if "target" in replication:
            return self.target.path
        numbers = []
        for mode in ("layer", "proj"):
            if mode in replication:
                index = self.coords[mode]
                numbers.append(f"{mode}{index if isinstance(index, int) else index[0]}")
        return ".".join(numbers)

    @property
    def absent_modes(self) -> list[str]:
        """The input modes that the weight does not have, such as kh and kw of a Linear."""
        return [mode for mode in INPUT_MODES if mode not in self.target.sizes]


def group_by_owner(located: Mapping[str, LocatedTarget], replication: Collection[str]) -> dict[str, list[str]]:
    """Owner of a copy -> the paths of the targets that read it."""
    groups: dict[str, list[str]] = {}
    for path, target in located.items():
        groups.setdefault(target.owner(replication), []).append(path)
    return groups


def largest_sizes(sizes_by_target: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Mode -> its largest size.

    Example:
        >>> largest_sizes([{"in": 8, "out": 4}, {"in": 6, "out": 16}])
        {'in': 8, 'out': 16}
    """
    largest: dict[str, int] = {}
    for sizes in sizes_by_target:
        for mode, size in sizes.items():
            largest[mode] = max(largest.get(mode, 1), size)
    return largest


def locate_targets(
    targets: Sequence[Target], resolved: ResolvedMethod
) -> tuple[dict[str, LocatedTarget], dict[str, int]]:
    """Locate all targets.

    Args:
        targets: The targets, in the model's order.
        resolved: The method.

    Returns:
        Path -> located target, and the sizes of the modes that all targets have in common (layers, projections, tasks,
        experts).

    Raises:
        ValueError: A target outside of the numbered layers, or a weight that cannot be cut or folded.
    """
    method = resolved.method
    layers = _layer_numbers(targets, resolved)
    projection_names = _projection_names(targets, resolved)
    cuts = {target.path: _cut_axis(target, _chunk_width(targets, resolved), method) for target in targets}
    first_projections, projections = _number_projections(projection_names, cuts)
    located = {}
    for target in targets:
        first_projection = first_projections[projection_names[target.path]]
        coords: dict[str, Index] = {"layer": layers[target.path], "proj": first_projection}
        located[target.path] = _locate(target, cuts[target.path], coords, resolved)
    counts = {
        "layer": len(set(layers.values())),
        "proj": projections,
        "task": resolved.tasks,
        "expert": resolved.experts,
    }
    return located, {mode: count for mode, count in counts.items() if mode in method.network.modes}


def _locate(
    target: Target, cut: Mapping[str, int], coords: dict[str, Index], resolved: ResolvedMethod
) -> LocatedTarget:
    transposed = _is_transposed(cut, target, resolved.method)
    sizes = network_axes(target, resolved)
    if transposed:  # from here on "in" is the weight's output, until `_target_layout` transposes the network back
        sizes, cut = transpose_axes(sizes), transpose_axes(cut)
    for axis, count in cut.items():
        sizes[axis] //= count
    sizes, folds = fold_axes(target, sizes, resolved)
    for axis, count in cut.items():  # at most one axis
        folds[axis] = ("proj", *folds.get(axis, (axis,)))  # the projections stand one after another: slowest first
        first_projection = coords["proj"]
        assert isinstance(first_projection, int)
        coords["proj"] = (first_projection, count)
        sizes["proj"] = count
    coords = {mode: index for mode, index in coords.items() if mode in resolved.method.coordinates}
    return LocatedTarget(target, sizes, folds, coords, transposed)


def counted_stacks(targets: Iterable[Target], method: Method) -> tuple[str, ...]:
    """The module stacks whose layers a method counts, in the order of the targets.

    A stack is named by its path up to the number of the layer. The targets outside of the layers, which only PEFT's
    patterns match, are a stack "" before all others.

    Example:
        >>> from torch import nn
        >>> from metalora.adapters.targets import find_targets
        >>> from metalora.methods.registry import METHODS
        >>> towers = {name: nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for name in ("text", "vision")}
        >>> counted_stacks(find_targets(nn.ModuleDict(towers), "*"), METHODS["metatt-4d"])
        ('text.*', 'vision.*')
    """
    if "layer" not in method.coordinates:
        return ()
    stacks = dict.fromkeys(_stack(target) for target in targets)
    return tuple(sorted(stacks, key=bool))  # the sort is stable: it only moves "" to the front


def _stack(target: Target) -> str:
    prefix, star, _ = target.role.partition("*")
    return prefix + star if star else ""


def _layer_numbers(targets: Sequence[Target], resolved: ResolvedMethod) -> dict[str, int]:
    """Path -> layer coordinate, 0 for the first layer that has a target."""
    method = resolved.method
    if "layer" not in method.coordinates:
        return {target.path: 0 for target in targets}
    stacks = counted_stacks(targets, method)
    layers: dict[str, tuple[int, ...]] = {}
    for target in targets:
        if target.layer is None:
            raise ValueError(
                f"target {target.path!r}: method {method.name!r} numbers the layers, and this path has no number of a "
                "layer; exclude it or name targets inside the layers"
            )
        first = (stacks.index(_stack(target)),) if resolved.config.stacks == "successive" else ()
        layers[target.path] = (*first, *target.layer)
    # In the order of their own numbers, whatever the order of the targets is.
    numbers = {layer: number for number, layer in enumerate(sorted({*layers.values()}))}
    return {path: numbers[layer] for path, layer in layers.items()}


def _projection_names(targets: Sequence[Target], resolved: ResolvedMethod) -> dict[str, str]:
    """Path -> name of the projection: its role, without the stack if the layers of each stack are counted anew."""
    if resolved.config.stacks == "aligned" or "layer" not in resolved.method.coordinates:
        return {target.path: target.role for target in targets}
    # A role outside of the layers stays whole: it has no "*", so that it is no name inside of a layer.
    return {target.path: "".join(target.role.partition("*")[1:]) or target.role for target in targets}


def _number_projections(names: Mapping[str, str], cuts: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, int], int]:
    """Name -> its first projection, and the number of all; a name has as many as its most finely cut weight.

    Args:
        names: Path -> name of the projection.
        cuts: Path -> the axis that is cut, and into how many.
    """
    projections_of_name: dict[str, int] = {}
    for path, name in names.items():
        count = prod(cuts[path].values())  # 1 for a weight that is not cut
        projections_of_name[name] = max(projections_of_name.get(name, 0), count)
    first_projections, total = {}, 0
    for name, count in projections_of_name.items():
        first_projections[name] = total
        total += count
    return first_projections, total


def _chunk_width(targets: Sequence[Target], resolved: ResolvedMethod) -> int | None:
    """The side of the squares that weights are cut into with widths="chunk": the smallest side of all."""
    if resolved.config.widths != "chunk":
        return None
    return min(min(target.sizes["in"], target.sizes["out"]) for target in targets)


def _cut_axis(target: Target, width: int | None, method: Method) -> dict[str, int]:
    """The axis of a weight that holds several projections, and how many: a fused qkv, or squares of `width`."""
    if "proj" not in method.network.modes:
        return {}
    if width is None:
        return {"out": target.parts} if target.parts > 1 else {}
    counts = {}
    for axis in ("in", "out"):
        if target.sizes[axis] % width:
            raise ValueError(f"target {target.path!r}: {axis}={target.sizes[axis]} is not cut into chunks of {width}")
        if target.sizes[axis] > width:
            counts[axis] = target.sizes[axis] // width
    if len(counts) > 1:
        raise ValueError(
            f"target {target.path!r}: widths 'chunk' cuts one side of a weight, and both of {target.sizes} are wider "
            f"than {width}: use per_shape or max_slice"
        )
    return counts


def _is_transposed(cut: Mapping[str, int], target: Target, method: Method) -> bool:
    """Whether the network is that of the weight's transpose here, by the rule of the method."""
    transposed = method.record(Transposed)
    if transposed is None:
        return False
    if transposed.when == "heads":
        return target.heads == "in"
    return "in" not in cut  # "chunks"
