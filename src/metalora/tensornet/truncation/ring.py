"""Truncation of rings, which have no orthogonal form: bond by bond, then a fit of all factors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metalora.tensornet.gram import bond_axis, contract, distance, mode_product, norm, open_label
from metalora.tensornet.topology import FactorBonds, edges, feasible_ranks
from metalora.tensornet.truncation.als import fit_to_reference
from metalora.tensornet.truncation.target import TruncationTarget

SHARES_OF_TOLERANCE = tuple(4.0 * 0.5**k for k in range(14))  # that the bonds discard, tried until the error is allowed
SMALLEST_EIGENVALUE = 1e-14  # of the largest one: smaller ones are not divided by


def truncate_ring(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """Truncate a ring.

    Bond by bond: the best projection on the bond for an environment that is assumed to be a product of its two sides
    (`_bond_projection`), then the fit of all factors to the ring as it was.

    Guaranteed: ranks that are kept change nothing, the fit never raises the error, a tolerance is kept. Not guaranteed:
    a distance from the best ring of these ranks, of which nothing is known (their set is not even closed).

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        target: What chooses the ranks.

    Returns:
        The truncated factors, and bond -> the norm that the bond discarded, as measured:
        |T - T'|^2 <= the sum of the squares.

    Example:
        >>> bonds = [["a", "b"], ["b", "c"], ["c", "a"]]
        >>> factors = [torch.randn(4, 3, 3, dtype=torch.float64) for _ in bonds]
        >>> target = TruncationTarget(bonds, (4, 4, 4), {"a": 3, "b": 2, "c": 3})
        >>> [tuple(factor.shape) for factor in truncate_ring(bonds, factors, target)[0]]
        [(4, 3, 2), (4, 2, 3), (4, 3, 3)]
    """
    # rank 0: the projections are not used here, only the values
    singular_values = {bond: _bond_projection(factor_bonds, tensors, bond, rank=0)[1] for bond in edges(factor_bonds)}
    if not target.discarded_per_bond:
        return _truncate_to_ranks(factor_bonds, tensors, target.choose(singular_values))
    allowed_error = target.discarded_per_bond * len(singular_values) ** 0.5
    # the projections are not orthogonal, so the discarded norms do not bound the error: measure it and try again
    for share in SHARES_OF_TOLERANCE:
        factors, discarded = _truncate_to_ranks(factor_bonds, tensors, target.choose(singular_values, share))
        if distance(factor_bonds, tensors, factors) <= allowed_error:
            return factors, discarded
    # no share was small enough, so every bond keeps all that the network can use
    all_ranks = feasible_ranks(factor_bonds, target.open_sizes, target.ranks)
    return _truncate_to_ranks(factor_bonds, tensors, all_ranks)


def _truncate_to_ranks(
    factor_bonds: FactorBonds, reference: Sequence[Tensor], ranks: Mapping[str, int]
) -> tuple[list[Tensor], dict[str, float]]:
    """The fitted factors (n, *bonds), and the norm that each bond discarded before the fit."""
    factors = list(reference)  # a bond is projected in the ring in which those before it are truncated
    discarded = dict.fromkeys(ranks, 0.0)
    error = 0.0
    for bond, (first, second) in edges(factor_bonds).items():
        first_axis, second_axis = bond_axis(factor_bonds[first], bond), bond_axis(factor_bonds[second], bond)
        if ranks[bond] == factors[first].shape[first_axis]:
            continue
        (first_side, second_side), _ = _bond_projection(factor_bonds, factors, bond, ranks[bond])
        factors[first] = mode_product(factors[first], first_axis, first_side)
        factors[second] = mode_product(factors[second], second_axis, second_side)
        error_now = distance(factor_bonds, reference, factors)
        discarded[bond] = max(error_now**2 - error**2, 0.0) ** 0.5  # what this bond adds; together they give error^2
        error = error_now
    return fit_to_reference(factor_bonds, reference, factors), discarded


def _bond_projection(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], bond: str, rank: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The projection of a bond on a smaller one, and the bond's singular values.

    |T - T(P)|^2 of a matrix P on the bond is (I - P)' N (I - P), N the Gram matrix of the ring opened there. With N
    replaced by the product of its two partial traces, K and L: |K^1/2 (I - P) L^1/2|, whose best P of a rank is
    K^-1/2 U U' K^1/2 by the singular vectors U of K^1/2 L^1/2. This is exact if nothing flows round the ring (a tree).

    Returns:
        The matrices (bond, rank) that the first and the second factor of the bond are contracted with, and the singular
        values (bond,), scaled so that their squares add up to |T|^2.
    """
    first, second = edges(factor_bonds)[bond]
    first_root, first_inverse = _square_root(_opened_gram(factor_bonds, tensors, bond, first))
    second_root, _ = _square_root(_opened_gram(factor_bonds, tensors, bond, second))
    u, values, _ = torch.linalg.svd(first_root @ second_root.mT)
    u = u[:, :rank]
    values = values * (norm(factor_bonds, tensors) / values.square().sum().sqrt().clamp_min(1e-300))
    # P = K^-1/2 U U' K^1/2 as its two factors, one for each end of the bond
    return (first_inverse @ u, first_root.mT @ u), values


def _square_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """R with R' R = G, and its pseudo-inverse; both (bond, bond)."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    root = eigenvalues.clamp_min(0).sqrt()[:, None] * vectors.mT  # (bond, bond): S^1/2 V'
    invertible = eigenvalues > SMALLEST_EIGENVALUE * eigenvalues.max()
    inverses = torch.where(invertible, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)
    return root, vectors * inverses


def _opened_gram(factor_bonds: FactorBonds, tensors: Sequence[Tensor], bond: str, end: int) -> Tensor:
    """The Gram matrix (bond, bond) at one end of a bond: the network is opened there, and the other end is traced."""
    operands: list[tuple[Tensor, list[str]]] = []
    for number, bonds in enumerate(factor_bonds):
        for copy in ("", "'"):  # the two networks of the inner product
            at_opened_bond = f"#end{copy}" if number == end else "#traced"
            labels = [at_opened_bond if name == bond else name + copy for name in bonds]
            operands.append((tensors[number], [open_label(number), *labels]))
    return contract(operands, ["#end", "#end'"])
