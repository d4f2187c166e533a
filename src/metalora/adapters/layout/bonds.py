"""The sizes of bonds and the scales of targets: ranks, `rank_pattern`, `alpha_pattern`, and what the modes allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from metalora._util.suggest import nearest
from metalora.adapters.layout.coordinates import LocatedTarget, group_by_owner, largest_sizes
from metalora.adapters.path_index import matches
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.records import AnyRank
from metalora.methods.resolve import ResolvedMethod

Value = TypeVar("Value")


def bond_sizes(
    located: Mapping[str, LocatedTarget], counts: Mapping[str, int], resolved: ResolvedMethod
) -> dict[str, dict[str, int]]:
    """Path -> bond -> size.

    A bond has one size at all targets that share a copy of some factor with the bond.

    Args:
        located: Path -> located target.
        counts: Sizes of the modes that all targets have in common.
        resolved: The method.

    Raises:
        ValueError: A rank above what the modes allow, or a `rank_pattern` that does not fit.
    """
    method, experts = resolved.method, resolved.experts
    patterned = ranks_by_path(located, resolved.config)
    configured = method.bond_sizes(resolved.config.rank, experts)
    sizes_of_rank = {rank: method.bond_sizes(rank, experts) for rank in {*patterned.values()}}
    sizes = {path: _fixed_sizes(target, method) for path, target in located.items()}
    for bond in configured:
        # Targets that share no factor with the bond may have other sizes of it.
        replication = _shared_replication(bond, method)
        for paths in group_by_owner(located, replication).values():
            rank = _common_rank(paths, patterned, method)
            wanted = configured if rank is None else sizes_of_rank[rank]
            # A shared factor is stored in the largest sizes of its readers, so these limit the rank.
            modes = {**largest_sizes(located[path].sizes for path in paths), **counts}
            prefix = f"target {paths[0]!r}" if "target" in replication else f"method {method.name!r}"
            size = _allowed_size(bond, wanted, modes, resolved, prefix)
            for path in paths:
                sizes[path][bond] = size
    return sizes


def ranks_by_path(paths: Collection[str], config: AdapterConfig) -> dict[str, int]:
    """The ranks of the paths that `config.rank_pattern` names; the first pattern that matches a path counts.

    Raises:
        ValueError: A pattern that matches no path.

    Example:
        >>> ranks_by_path(["0.query", "0.value", "1.query"], AdapterConfig("lora", rank_pattern={"0.*": 4}))
        {'0.query': 4, '0.value': 4}
    """
    return _values_by_path(paths, config.rank_pattern, "rank_pattern")


def scales_by_path(paths: Collection[str], resolved: ResolvedMethod) -> dict[str, float]:
    """The scale of every target, by its own rank and its own alpha if `rank_pattern` or `alpha_pattern` give it one.

    Raises:
        ValueError: A pattern that matches no path.

    Example:
        >>> from metalora.methods.resolve import resolve
        >>> config = AdapterConfig("lora", rank=4, alpha=4.0, alpha_pattern={"0.query": 8.0})
        >>> scales_by_path(["0.query", "0.value"], resolve(config))
        {'0.query': 2.0, '0.value': 1.0}
    """
    ranks = ranks_by_path(paths, resolved.config)
    alphas = _values_by_path(paths, resolved.config.alpha_pattern, "alpha_pattern")
    return {path: resolved.scale_for(ranks.get(path, resolved.rank), alphas.get(path)) for path in paths}


def _values_by_path(paths: Collection[str], patterns: Mapping[str, Value], setting: str) -> dict[str, Value]:
    """Path -> the value of the first pattern that matches it; ValueError for a pattern that matches no path."""
    values: dict[str, Value] = {}
    for pattern, value in patterns.items():
        # An exact path counts as itself: as a pattern it would also match paths that end alike.
        matched = [pattern] if pattern in paths else [path for path in paths if matches(path, pattern)]
        if not matched:
            raise ValueError(f"{setting} {pattern!r} matches no target{nearest(pattern, paths)[:300]}")
        for path in matched:
            values.setdefault(path, value)
    return values


def _fixed_sizes(target: LocatedTarget, method: Method) -> dict[str, int]:
    """Bond -> size, of the bonds whose size is a number or that of a mode."""
    return {bond: size if isinstance(size, int) else target.sizes[size] for bond, size in method.fixed_bonds.items()}


def _shared_replication(bond: str, method: Method) -> frozenset[str]:
    """The coordinates that have a copy each of every factor with the bond."""
    replications = [method.replication_of(factor) for factor, modes in method.network.factors.items() if bond in modes]
    return frozenset.intersection(*replications)


def _common_rank(paths: Sequence[str], patterned: Mapping[str, int], method: Method) -> int | None:
    """The rank that `rank_pattern` gives to targets that share a bond; None for the configured one.

    Raises:
        ValueError: Their ranks differ.
    """
    path_of = {patterned.get(path): path for path in paths}  # a path for each of the different ranks
    if len(path_of) > 1:
        first, second, *_ = path_of.values()
        raise ValueError(
            f"method {method.name!r}: rank_pattern gives {first!r} and {second!r} unequal ranks, and they have factors "
            "in common; set the rank of each bond by name instead"
        )
    [rank] = path_of
    return rank


def _allowed_size(
    bond: str, wanted: Mapping[str, int], modes: Mapping[str, int], resolved: ResolvedMethod, prefix: str
) -> int:
    """The size of a bond, lowered to what the modes allow if the configuration says so.

    Args:
        bond: The bond.
        wanted: Sizes of all bonds as configured.
        modes: Sizes of the modes.
        resolved: The method.
        prefix: Prefix of the error message.

    Raises:
        ValueError: The size is above what the modes allow, and neither the configuration nor the method accepts that.
    """
    method, clip = resolved.method, resolved.config.clip_rank
    size, largest = wanted[bond], method.network.max_rank(bond, {**modes, **wanted})
    if size > largest and not clip and not method.has(AnyRank):
        own_modes = {mode: n for mode, n in modes.items() if mode in method.network.modes}
        raise ValueError(
            f"{prefix}: rank {size} of bond {bond!r} is above {largest}, the smaller side of its {own_modes} "
            "(clip_rank: true lowers it where needed)"
        )
    return min(size, largest) if clip else size
