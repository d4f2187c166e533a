"""A small dense tensor as factors: exactly for chains and trees, by alternating least squares for one shared bond (CP).

The tensor has an axis for every factor, of size one if a factor has bonds alone (the core of a Tucker network).
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.gram import contract, dense_tensor, open_label
from metalora.tensornet.topology import (
    FactorBonds,
    bond_sizes,
    classify_topology,
    leaf_to_root_edges,
    most_connected_factor,
)
from metalora.tensornet.truncation.als import Stopping, alternate, best_factor
from metalora.tensornet.truncation.gauge import tree_in_gauge
from metalora.tensornet.truncation.tree import hooi
from metalora.tensornet.truncation.truncate import truncate

Columns = Literal["joint", "deflated"]
SMALLEST_SINGULAR_VALUE = 1e-13  # of the largest one: below it a direction is rounding
HOOI_PASSES = 8  # in addition to those of a truncation
COLUMN_FIT = Stopping(passes=200, smallest_gain=1e-5, negligible_error=1e-9)
SMALLEST_COLUMN_NORM = 1e-150  # a shorter column is scaled as if it had this norm


def factorise(
    factor_bonds: FactorBonds, tensor: Tensor, ranks: Mapping[str, int], columns: Columns = "joint"
) -> list[Tensor]:
    """Factorise a dense tensor.

    A chain: TT-SVD, then HOOI on pairs of neighbours; a tree: HOSVD, then HOOI; one shared bond: alternating least
    squares from two starts.

    Args:
        factor_bonds: The bonds of every factor.
        tensor: (n_1, n_2, ...), an axis for every factor; float64.
        ranks: Bond -> the largest rank.
        columns: Of a shared bond: all columns are fitted together ("joint"), or one after another to what the ones
            before it leave ("deflated").

    Returns:
        Factors (n_k, *bonds) whose contraction is near the tensor, with balanced norms.

    Raises:
        ValueError: A ring or another topology; a chain or tree of a zero tensor.

    Example:
        >>> tensor = torch.arange(12, dtype=torch.float64).reshape(3, 4)  # rank two
        >>> left, right = factorise([["r"], ["r"]], tensor, {"r": 2})
        >>> torch.allclose(left @ right.mT, tensor)
        True
    """
    topology = classify_topology(factor_bonds)
    if topology == "shared bond":
        (rank,) = ranks.values()
        return fit_columns(tensor, rank) if columns == "joint" else deflate_columns(tensor, rank)
    if topology not in ("chain", "tree"):
        raise ValueError(f"bonds {list(map(list, factor_bonds))} are not a chain, a tree or one bond shared by all")
    exact = decompose(factor_bonds, tensor)
    exact_ranks = bond_sizes(factor_bonds, exact)
    wanted_ranks = {bond: min(rank, exact_ranks[bond]) for bond, rank in ranks.items()}
    factors = truncate(factor_bonds, exact, ranks=wanted_ranks, gauge="balanced").tensors
    if wanted_ranks == exact_ranks:  # nothing was truncated, so nothing can be improved
        return factors
    return tree_in_gauge(factor_bonds, hooi(factor_bonds, exact, factors, HOOI_PASSES), "balanced")


def decompose(factor_bonds: FactorBonds, tensor: Tensor) -> list[Tensor]:
    """Decompose a dense tensor as a chain or tree, exactly.

    In leaf-to-root order, T = U (S V') splits a factor U off what is left, with the bond towards the root between them.
    Of a chain this is TT-SVD (Oseledets 2011, Algorithm 1), of a star HOSVD (De Lathauwer et al. 2000a), without
    truncation.

    Args:
        factor_bonds: The bonds of every factor.
        tensor: (n_1, n_2, ...), an axis for every factor.

    Returns:
        Factors (n_k, *bonds).

    Example:
        >>> tensor = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
        >>> factors = decompose([["a"], ["a", "b"], ["b"]], tensor)
        >>> torch.allclose(dense_tensor([["a"], ["a", "b"], ["b"]], factors), tensor)
        True
    """
    root = most_connected_factor(factor_bonds)
    factors: dict[int, Tensor] = {}
    remainder = tensor
    labels = [open_label(number) for number in range(len(factor_bonds))]  # of the axes of `remainder`
    for child, bond, _ in leaf_to_root_edges(factor_bonds, root):
        child_labels = [open_label(child), *(child_bond for child_bond in factor_bonds[child] if child_bond != bond)]
        other_labels = [label for label in labels if label not in child_labels]
        remainder = _permuted(remainder, labels, [*child_labels, *other_labels])
        child_shape, other_shape = remainder.shape[: len(child_labels)], remainder.shape[len(child_labels) :]
        matrix = remainder.reshape(child_shape.numel(), other_shape.numel())  # the unfolding: child, all the others
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = max(1, int((s > SMALLEST_SINGULAR_VALUE * s[0]).sum()))  # a zero tensor has bonds of size one
        factor = u[:, :rank].reshape(*child_shape, rank)
        factors[child] = _permuted(factor, [*child_labels, bond], [open_label(child), *factor_bonds[child]])
        remainder = (s[:rank, None] * v[:rank]).reshape(rank, *other_shape)  # S V' goes on towards the root
        labels = [bond, *other_labels]
    factors[root] = _permuted(remainder, labels, [open_label(root), *factor_bonds[root]])
    return [factors[number] for number in range(len(factor_bonds))]


def _permuted(tensor: Tensor, labels: Sequence[str], order: Sequence[str]) -> Tensor:
    """A tensor with one axis for each label, (*labels) -> (*order)."""
    return tensor.permute([labels.index(label) for label in order])


# ---- one bond shared by all -----------------------------------------------------------------------------------------
def fit_columns(tensor: Tensor, rank: int) -> list[Tensor]:
    """Fit CP factors by alternating least squares, from eigenvectors and from singular vectors; the better result.

    There need not be a best approximation, and none is promised. An exact one is found if the columns on the two
    longest axes are linearly independent (Jennrich's algorithm is then exact).

    Args:
        tensor: (n_1, n_2, ...).
        rank: The number of columns r.

    Returns:
        Factors (n_k, r); a column has the same norm in each.

    Example:
        >>> tensor = torch.ones(2, 3, 4, dtype=torch.float64)
        >>> factors = fit_columns(tensor, rank=1)
        >>> torch.allclose(dense_tensor([["r"]] * 3, factors), tensor)
        True
    """
    generator = torch.Generator().manual_seed(0)  # equal input gives equal output
    starts = [_singular_vector_start(tensor, rank, generator)]
    second_longest = sorted(tensor.shape)[-2]
    if tensor.ndim > 2 and second_longest >= rank:
        starts.append(_eigenvector_start(tensor, rank, generator))
    fits = [_alternate_columns(tensor, start) for start in starts]
    factors, _ = min(fits, key=lambda fit: fit[1])
    return _balanced(factors)


def deflate_columns(tensor: Tensor, rank: int) -> list[Tensor]:
    """Fit CP factors greedily: the best rank-one tensor is subtracted, and the next one is fitted to what is left.

    Each column is as near to what is left as the higher-order power method gets; all together are no better than those
    of `fit_columns`.

    Args:
        tensor: (n_1, n_2, ...).
        rank: The number of columns r.

    Returns:
        Factors (n_k, r); a column has the same norm in each.

    Example:
        >>> tensor = torch.ones(2, 3, 4, dtype=torch.float64)
        >>> [tuple(factor.shape) for factor in deflate_columns(tensor, rank=2)]
        [(2, 2), (3, 2), (4, 2)]
    """
    remainder = tensor
    rank_one_fits: list[list[Tensor]] = []
    for _ in range(rank):
        rank_one = fit_columns(remainder, 1)  # with one column, alternating least squares is the power method
        rank_one_fits.append(rank_one)
        remainder = remainder - dense_tensor([["r"]] * tensor.ndim, rank_one)
    return [torch.cat(columns, 1) for columns in zip(*rank_one_fits, strict=True)]


def _alternate_columns(tensor: Tensor, start: list[Tensor]) -> tuple[list[Tensor], float]:
    """Alternating least squares, X_k = T_(k) (others) ((others)' others)^+ for every axis in turn, the longest first.

    Returns:
        The factors (n_k, r), and |T - T'|.
    """
    square = float(tensor.square().sum())
    longest_first = sorted(range(tensor.ndim), key=lambda axis: -tensor.shape[axis])

    def one_pass(factors: list[Tensor]) -> tuple[list[Tensor], float]:
        factors = list(factors)
        for axis in longest_first:
            grams = [factor.mT @ factor for number, factor in enumerate(factors) if number != axis]
            gram = torch.stack(grams).prod(0)  # (r, r): of a Khatri-Rao product, the product of the entries
            projection = _project_onto_columns(tensor, factors, axis)  # (n, r)
            factors[axis] = best_factor(projection, gram)
        # the Gram matrix and the projection of the last axis also give |T - T'|, of the factors as they are now
        last = factors[axis]
        inner_product = float((projection * last).sum())
        approximation_square = float((gram * (last.mT @ last)).sum())
        error = sqrt(max(square - 2 * inner_product + approximation_square, 0.0))
        # unbalanced columns grow apart from pass to pass, until the Gram matrices lose their precision
        return _balanced(factors), error

    return alternate(one_pass, start, float("inf"), sqrt(square), COLUMN_FIT)


def _project_onto_columns(tensor: Tensor, factors: Sequence[Tensor], axis: int) -> Tensor:
    """The tensor contracted with the columns of all factors but one: (n, r)."""
    labels = [open_label(number) for number in range(tensor.ndim)]
    other_operands = [(factor, [labels[number], "r"]) for number, factor in enumerate(factors) if number != axis]
    return contract([(tensor, labels), *other_operands], [labels[axis], "r"])


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same columns (n_k, r), of the same norm in every factor."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(SMALLEST_COLUMN_NORM)
    mean_norm = norms.log().mean(0).exp()
    return [factor * (mean_norm / norm) for factor, norm in zip(factors, norms, strict=True)]


def _singular_vector_start(tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """The leading singular vectors of every unfolding, and random columns if there are too few: (n_k, rank) each."""
    factors: list[Tensor] = []
    for axis, size in enumerate(tensor.shape):
        unfolding = tensor.movedim(axis, 0).reshape(size, -1)
        vectors = torch.linalg.svd(unfolding, full_matrices=False).U[:, :rank]
        missing = torch.randn(size, rank - vectors.shape[1], generator=generator, dtype=tensor.dtype)
        factors.append(torch.cat([vectors, missing], 1))
    return factors


def _eigenvector_start(tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """Jennrich's algorithm: the columns of the longest axis are the eigenvectors of M1 M2^+, two mixtures of slices.

    Returns:
        (n_k, rank) each.
    """
    longest, second_longest = sorted(range(tensor.ndim), key=lambda axis: -tensor.shape[axis])[:2]
    slices = tensor.movedim((longest, second_longest), (0, 1)).flatten(2)  # (longest, second longest, others)
    # orthonormal bases of the two longest axes, in which the mixtures become (rank, rank)
    u = torch.linalg.svd(slices.flatten(1), full_matrices=False).U[:, :rank]  # (longest, rank)
    v = torch.linalg.svd(slices.movedim(1, 0).flatten(1), full_matrices=False).U[:, :rank]  # (second longest, rank)
    mixtures = slices @ torch.randn(slices.shape[2], 2, generator=generator, dtype=tensor.dtype)
    first, second = (u.mT @ mixtures[..., number] @ v for number in (0, 1))  # (rank, rank)
    # noise can make pairs of eigenvalues complex; their real parts still start the least squares
    columns = u @ torch.linalg.eig(first @ torch.linalg.pinv(second)).eigenvectors.real
    rank_one_rows = torch.tensordot(torch.linalg.pinv(columns), tensor.movedim(longest, 0), 1)  # (rank, other axes)
    factors: list[Tensor] = []
    for axis in range(1, tensor.ndim):
        unfoldings = rank_one_rows.movedim(axis, 1).flatten(2)  # (rank, n, others)
        factors.append(torch.linalg.svd(unfoldings, full_matrices=False).U[:, :, 0].mT)
    return [*factors[:longest], columns, *factors[longest:]]
