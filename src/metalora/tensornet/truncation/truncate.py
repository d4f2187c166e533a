"""Rank truncation of any network that is a chain, a tree (Tucker), a ring or a shared bond (CP), told by its wiring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from metalora.tensornet.topology import (
    Terms,
    TruncationTarget,
    bond_sizes,
    classify_topology,
    distance,
    edges,
    feasible_ranks,
    leaf_to_root_edges,
    norm,
    qr_compress,
)
from metalora.tensornet.truncation.als import columns_in_gauge, ring_in_gauge, truncate_columns, truncate_ring
from metalora.tensornet.truncation.rounding import Gauge, Mode, round_train
from metalora.tensornet.truncation.tree import in_gauge, truncate_tree

ALGORITHMS = {
    "tree": (truncate_tree, in_gauge),
    "ring": (truncate_ring, ring_in_gauge),
    "shared bond": (truncate_columns, columns_in_gauge),
}


@dataclass(frozen=True)
class Truncated:
    """Factors after a truncation, the rank of every bond and the norm it discarded, |T - T'|_F / |T|_F as measured.

    |T - T'|_F <= `bound`, but for a chain in mode "paper". `error` is measured by Gram matrices: below 1e-8, rounding.
    """

    tensors: list[Tensor]
    ranks: dict[str, int]
    discarded: dict[str, float]
    error: float

    @property
    def bound(self) -> float:
        """The root of the discarded squares."""
        return sqrt(sum(value**2 for value in self.discarded.values()))


def truncate(
    terms: Terms,
    tensors: Sequence[Tensor],
    *,
    ranks: Mapping[str, int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
) -> Truncated:
    """Truncate factors (n, *bonds) to ranks, to a relative error or to a number of parameters; computed in float64.

    terms      the bonds of every factor, in the order of its axes; their wiring chooses the algorithm:
               chain `round_train` · tree `truncate_tree` · ring `truncate_ring` · shared bond `truncate_columns`
    ranks      of the bonds, lowered to what is feasible; bonds that are not named, and None, keep theirs
    tolerance  |T - T'|_F <= tolerance |T|_F
    budget     the relatively largest singular values of all bonds that the factors have room for
    mode       "paper" is an algorithm of chains
    gauge      where the norm ends: in the last factor (left), in the first (right), shared alike (balanced); of a chain
               the last is the end that is not declared first

    Equal input gives equal output: the largest entry of every singular vector, or column, is positive. ValueError:
    another wiring, a zero or not finite network, ranks that grow, a budget below that of rank one, two targets.
    """
    kind = classify_topology(terms)
    if kind is None:
        raise ValueError(f"bonds {list(map(list, terms))} are no chain, tree, ring or one bond shared by all")
    now = bond_sizes(terms, tensors)
    if (ranks is not None) + (tolerance > 0) + (budget is not None) > 1:
        raise ValueError("a network is truncated to ranks, to a tolerance or to a budget: give one of them")
    if kind == "chain":
        found, discarded = _truncate_chain(terms, tensors, ranks and {**now, **ranks}, tolerance, budget, mode, gauge)
    elif mode != "round":
        raise ValueError(f"mode {mode!r} is an algorithm of chains, and this is a {kind}: use mode 'round'")
    else:
        found, discarded = _truncate_other(kind, terms, tensors, {**now, **(ranks or {})}, tolerance, budget, gauge)
    found = [tensor.to(like.dtype) for tensor, like in zip(found, tensors, strict=True)]
    old, new = ([tensor.detach().double() for tensor in some] for some in (tensors, found))
    return Truncated(found, bond_sizes(terms, found), discarded, distance(terms, old, new) / norm(terms, old))


def _truncate_chain(
    terms: Terms, tensors: Sequence[Tensor], ranks: Mapping[str, int] | None, tolerance: float, budget: int | None,
    mode: Mode, gauge: Gauge,
) -> tuple[list[Tensor], dict[str, float]]:  # fmt: skip
    """`round_train`, from the end of the chain that is declared first."""
    ends = [k for k, term in enumerate(terms) if len(term) == 1]
    links = leaf_to_root_edges(terms, ends[0])[::-1]
    order, bonds = [ends[0], *(child for child, _, _ in links)], [bond for _, bond, _ in links]
    around = [[None, *bonds], [*bonds, None]]
    cores = [_as_core(terms[k], tensors[k], left, right) for k, left, right in zip(order, *around, strict=True)]
    wanted = None if ranks is None else [ranks[bond] for bond in bonds]
    done = round_train(cores, ranks=wanted, tolerance=tolerance, budget=budget, mode=mode, gauge=gauge)
    found = list(tensors)
    for k, left, right, core in zip(order, *around, done.cores, strict=True):
        found[k] = _from_core(terms[k], core, left, right)
    return found, dict(zip(bonds, done.discarded, strict=True))


def _as_core(term: Sequence[str], tensor: Tensor, left: str | None, right: str | None) -> Tensor:
    """(n, *bonds) as (left, n, right), an end of the chain being one."""
    if left is None:
        return tensor[None]
    if right is None:
        return tensor.mT[..., None]
    return tensor.permute(1, 0, 2) if term[0] == left else tensor.permute(2, 0, 1)


def _from_core(term: Sequence[str], core: Tensor, left: str | None, right: str | None) -> Tensor:
    """The inverse of `_as_core`."""
    if left is None:
        return core[0]
    if right is None:
        return core[..., 0].mT
    return core.permute(1, 0, 2) if term[0] == left else core.permute(1, 2, 0)


def _truncate_other(
    kind: str, terms: Terms, tensors: Sequence[Tensor], ranks: Mapping[str, int], tolerance: float,
    budget: int | None, gauge: Gauge,
) -> tuple[list[Tensor], dict[str, float]]:  # fmt: skip
    """What all but chains have in common: checks, small factors, a goal, and the gauge at the end."""
    whole = [tensor.detach().to(torch.float64) for tensor in tensors]
    _check(kind, terms, whole, ranks)
    truncation, gauged = ALGORITHMS[kind]
    sizes = tuple(map(len, whole))
    small, frames = qr_compress(whole)
    cut = tolerance * norm(terms, whole) / sqrt(len(edges(terms)))
    goal = TruncationTarget(terms, sizes, feasible_ranks(terms, sizes, ranks), cut, budget)
    found, discarded = truncation(terms, small, goal)
    found = [t if q is None else torch.tensordot(q, t, 1) for q, t in zip(frames, found, strict=True)]
    return gauged(terms, found, gauge), discarded


def _check(kind: str, terms: Terms, tensors: Sequence[Tensor], ranks: Mapping[str, int]) -> None:
    if any(not torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"the {kind} is not finite")
    if norm(terms, tensors) == 0:
        raise ValueError(f"the {kind} is zero: its singular vectors mean nothing, and a sweep would cripple it")
    now = bond_sizes(terms, tensors)
    for bond, rank in ranks.items():
        if bond not in now or not 1 <= rank <= now[bond]:
            raise ValueError(f"rank {rank} of bond {bond!r}: expected 1 to what it is now, {now}")
