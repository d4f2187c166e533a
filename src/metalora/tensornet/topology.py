"""How factors are joined by bonds, and what follows for any of them: contractions, norms, ranks that fit.

A factor is a tensor (n, *bonds): its other axes as one, then an axis for each of the bonds that `terms` gives it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt

import opt_einsum
import torch
from torch import Tensor

Terms = Sequence[Sequence[str]]


def classify_topology(terms: Terms) -> str | None:
    """What the bonds make of connected factors: "chain", "tree", "ring", "shared bond" (CP); None for anything else."""
    ends = edges(terms)
    if len(ends) == 1 and len(terms) > 2 and all(len(term) == 1 for term in terms):
        return "shared bond"
    if any(len(factors) != 2 for factors in ends.values()) or len(connected_components(terms)) != 1:
        return None
    if len(ends) == len(terms) - 1:
        return "chain" if max(map(len, terms)) < 3 else "tree"
    return "ring" if all(len(term) == 2 for term in terms) else None


def edges(terms: Terms) -> dict[str, tuple[int, ...]]:
    """Bond -> the numbers of the factors that it joins."""
    bonds = dict.fromkeys(bond for term in terms for bond in term)
    return {bond: tuple(k for k, term in enumerate(terms) if bond in term) for bond in bonds}


def bond_sizes(terms: Terms, tensors: Sequence[Tensor]) -> dict[str, int]:
    """Bond -> its size."""
    return {b: n for term, one in zip(terms, tensors, strict=True) for b, n in zip(term, one.shape[1:], strict=True)}


def connected_components(terms: Terms) -> list[list[int]]:
    """The connected parts: numbers of factors, in order."""
    found: list[list[int]] = []
    for k, term in enumerate(terms):
        touched = [part for part in found if any(set(terms[j]) & set(term) for j in part)]
        found = [part for part in found if part not in touched] + [sorted([k, *(j for part in touched for j in part)])]
    return sorted(found)


def leaf_to_root_edges(terms: Terms, root: int) -> list[tuple[int, str, int]]:
    """(factor, bond, factor nearer to the root) of a tree, the leaves first; the root is nobody's child."""
    found: list[tuple[int, str, int]] = []
    near = [root]
    for parent in near:
        for bond in terms[parent]:
            for child, term in enumerate(terms):
                if bond in term and child not in near:
                    found.append((child, bond, parent))
                    near.append(child)
    return found[::-1]


# ---- contractions ---------------------------------------------------------------------------------------------------
def axis(term: Sequence[str], bond: str) -> int:
    """Where a factor has the bond."""
    return 1 + list(term).index(bond)


def mode_product(tensor: Tensor, at: int, matrix: Tensor) -> Tensor:
    """The axis contracted with the first of a matrix, whose second takes its place."""
    return torch.tensordot(tensor, matrix, ([at], [0])).movedim(-1, at)


def contract(operands: Sequence[tuple[Tensor, Sequence[str]]], out: Sequence[str]) -> Tensor:
    """Tensors with a label for every axis, summed over the labels that are not in `out`."""
    tensors, labels = zip(*operands, strict=True)
    return _planned(tuple(map(tuple, labels)), tuple(out), tuple(tuple(t.shape) for t in tensors))(*tensors)


@lru_cache(maxsize=512)  # planning takes five times as long as contracting, and a fit repeats itself
def _planned(
    labels: tuple[tuple[str, ...], ...], out: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Callable[..., Tensor]:
    every = dict.fromkeys(label for term in labels for label in term)
    letter = {label: opt_einsum.get_symbol(k) for k, label in enumerate(every)}
    *inputs, output = ["".join(letter[label] for label in term) for term in (*labels, out)]
    return opt_einsum.contract_expression(",".join(inputs) + "->" + output, *shapes)


def environment(terms: Terms, one: Sequence[Tensor], other: Sequence[Tensor], apart: Collection[int] = ()) -> Tensor:
    """<one, other> with the factors `apart` left out of both: (*their bonds in one, *their bonds in the other)."""
    operands = []
    for k, term in enumerate(terms):
        if k not in apart:
            operands += [(one[k], [f"#{k}", *term]), (other[k], [f"#{k}", *(f"{bond}'" for bond in term)])]
    open_ends = [bond for k in apart for bond in terms[k]]
    return contract(operands, [*open_ends, *(f"{bond}'" for bond in open_ends)])


def project_onto(
    terms: Terms, whole: Sequence[Tensor], mine: Sequence[Tensor], *apart: int, without: Collection[str] = ()
) -> Tensor:
    """`whole` seen through all factors of `mine` but some: (n, *bonds) of each of these, `without` bonds of theirs."""
    operands = []
    for k, term in enumerate(terms):
        operands.append((whole[k], [f"#{k}", *term]))
        if k not in apart:
            operands.append((mine[k], [f"#{k}", *(f"{bond}'" for bond in term)]))
    return contract(operands, [m for k in apart for m in (f"#{k}", *(f"{b}'" for b in terms[k] if b not in without))])


def norm(terms: Terms, tensors: Sequence[Tensor]) -> float:
    """|T|_F."""
    return sqrt(max(float(environment(terms, tensors, tensors)), 0.0))


def distance(terms: Terms, one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """|T - T'|_F by |T|^2 - 2 <T, T'> + |T'|^2; below 1e-8 |T| it is rounding."""
    square = norm(terms, one) ** 2 - 2 * float(environment(terms, one, other)) + norm(terms, other) ** 2
    return sqrt(max(square, 0.0))


def qr_compress(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Factors whose other axes are no longer than their bonds together, and the orthonormal frames taken out by QR.

    The best approximations of a network lie in these frames, so nothing is lost, and what is left is small.
    """
    small, frames = [], []
    for tensor in tensors:
        q, r = torch.linalg.qr(tensor.flatten(1)) if len(tensor) > prod(tensor.shape[1:]) else (None, tensor)
        small.append(r.reshape(-1, *tensor.shape[1:]))
        frames.append(q)
    return small, frames


# ---- ranks ----------------------------------------------------------------------------------------------------------
def feasible_ranks(terms: Terms, sizes: Sequence[int], ranks: Mapping[str, int]) -> dict[str, int]:
    """Ranks lowered until, of every factor, none is above the product of its other axes (bonds of two factors)."""
    ends, ranks = edges(terms), dict(ranks)
    while True:
        found = {
            bond: min(rank, *(sizes[k] * prod(ranks[b] for b in terms[k] if b != bond) for k in ends[bond]))
            if len(ends[bond]) == 2
            else rank
            for bond, rank in ranks.items()
        }
        if found == ranks:
            return found
        ranks = found


def tail_norms(values: Tensor) -> Tensor:
    """tails[j]: the norm of values[j:]."""
    return values.flip(0).square().cumsum(0).flip(0).sqrt()


@dataclass(frozen=True)
class TruncationTarget:
    """What a truncation aims at: ranks, a discarded norm for every bond, or a number of parameters.

    sizes  of the factors' own axes, before any compression
    """

    terms: Terms
    sizes: tuple[int, ...]
    ranks: Mapping[str, int]
    cut: float = 0.0
    budget: int | None = None

    def choose(self, values: Mapping[str, Tensor], share: float = 1.0) -> dict[str, int]:
        """Ranks from the singular values of the bonds, with `share` of the cut."""
        ranks = {bond: min(self.ranks[bond], len(s)) for bond, s in values.items()}
        if self.budget is not None:
            ranks = self._within_budget(values, ranks)
        elif self.cut > 0:
            ranks = {b: min(r, max(1, int((tail_norms(values[b]) > share * self.cut).sum()))) for b, r in ranks.items()}
        return feasible_ranks(self.terms, self.sizes, ranks)

    def numbers(self, ranks: Mapping[str, int]) -> int:
        """Numbers in all factors."""
        return sum(n * prod(ranks[b] for b in term) for n, term in zip(self.sizes, self.terms, strict=True))

    def _within_budget(self, values: Mapping[str, Tensor], most: Mapping[str, int]) -> dict[str, int]:
        """From rank one, the relatively largest next value first, where there is room for it."""
        ranks = dict.fromkeys(values, 1)
        if self.numbers(ranks) > self.budget:
            raise ValueError(f"a budget of {self.budget} numbers is below {self.numbers(ranks)}, that of rank one")
        steps = [(float(v / s[0].clamp_min(1e-300)), bond) for bond, s in values.items() for v in s[1 : most[bond]]]
        for value, bond in sorted(steps, reverse=True):
            larger = {**ranks, bond: ranks[bond] + 1}
            if value > 0 and self.numbers(larger) <= self.budget:
                ranks = larger
        return ranks
