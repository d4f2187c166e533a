"""Truncation by what the loss needs: the score of a singular value is the value times the loss's sensitivity to it.

M = I is put on a bond. The gradient dL/dM (bond, bond) follows from one factor of the bond and its gradient, and it
holds the derivative of the loss with respect to every component of the bond, in any basis. A component of a chain or
tree is a singular value with its two vectors, s_j u_j v_j'; a component of CP is a column of all factors. Taking it
away changes the loss by its score, to first order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.tensornet.gram import bond_axis, distance, mode_product, tail_norms
from metalora.tensornet.topology import FactorBonds, edges, leaf_to_root_edges, most_connected_factor
from metalora.tensornet.truncation.target import TruncationTarget
from metalora.tensornet.truncation.tree import bond_decompositions, orthogonalize_with_bases

NEGLIGIBLE_VALUE = 1e-12  # of a bond's largest singular value: below it the singular vectors are rounding


def bond_gradients(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Compute the gradient of the loss with respect to a matrix M on every bond, at M = I.

    The first factor G of the bond becomes G M, so that dL/dM = G' dL/dG, all other axes of G being summed. The second
    factor gives the same, transposed.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        gradients: The gradient of the loss with respect to every factor, of its shape.

    Returns:
        Bond -> dL/dM (bond, bond). Of a bond that more than two factors share (CP), only the diagonal has a meaning.

    Example:
        >>> factors = [torch.tensor([[1.0, 2.0]]), torch.ones(3, 2)]
        >>> gradients = [torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 2.0]] * 3)]  # of the sum of all entries
        >>> bond_gradients([["r"], ["r"]], factors, gradients)["r"].diagonal()
        tensor([3., 6.])
    """
    matrices: dict[str, Tensor] = {}
    for bond, (first, *_) in edges(factor_bonds).items():
        axis = bond_axis(factor_bonds[first], bond)
        # (n · other bonds, bond) each
        columns, gradient = (tensor.movedim(axis, -1).flatten(0, -2) for tensor in (tensors[first], gradients[first]))
        matrices[bond] = columns.mT @ gradient
    return matrices


def away_from_root(factor_bonds: FactorBonds, gradients: Mapping[str, Tensor], root: int) -> dict[str, Tensor]:
    """Turn gradients of matrices on the side of each bond's first factor into those on the side away from the root.

    Args:
        factor_bonds: The bonds of every factor of a chain or tree.
        gradients: Bond -> dL/dM (..., bond, bond), see `bond_gradients`.
        root: The number of the factor that is the root.

    Example:
        >>> gradients = {"r": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> away_from_root([["r"], ["r"]], gradients, root=0)["r"]
        tensor([[1., 3.],
                [2., 4.]])
    """
    first_factor = {bond: ends[0] for bond, ends in edges(factor_bonds).items()}
    return {
        bond: gradients[bond] if first_factor[bond] == child else gradients[bond].mT
        for child, bond, _ in leaf_to_root_edges(factor_bonds, root)
    }


@dataclass(frozen=True)
class ScoredValues:
    """The singular values of a bond, the highest score first.

    Attributes:
        scores: The mean of |s_j dL/ds_j| over the batches, (r,).
        values: s_j, (r,).
        vectors: The singular vectors of the side away from the root as columns in the basis of the bond, (bond, r).
    """

    scores: Tensor
    values: Tensor
    vectors: Tensor


def orthonormal_with_gradients(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], gradients: Mapping[str, Tensor], root: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Make all factors but the root orthonormal towards it, and express the gradients at the bonds in the new bases.

    With L = Q R the side of a bond away from the root, the matrix M on the bond becomes R M R^+.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        gradients: Bond -> dL/dM of every batch (batch, bond, bond), M being on the side away from the root.
        root: The number of the factor that keeps the norm of the tensor.

    Returns:
        The factors and the gradients.

    Example:
        >>> factors, gradients = [torch.ones(4, 1), torch.ones(9, 1)], {"r": torch.ones(1, 1, 1)}
        >>> orthonormal_with_gradients([["r"], ["r"]], factors, gradients, root=1)[1]["r"].shape
        torch.Size([1, 1, 1])
    """
    factors, bases = orthogonalize_with_bases(factor_bonds, tensors, root)
    return factors, {bond: torch.linalg.pinv(basis).mT @ gradients[bond] @ basis.mT for bond, basis in bases.items()}


def score_tree(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], gradients: Mapping[str, Tensor], root: int
) -> dict[str, ScoredValues]:
    """Score the singular values of a chain or tree at every bond.

    In a basis in which the side away from the root is orthonormal, the component s_j u_j v_j' is the projection
    w_j w_j' on the bond, w_j being its singular vector. Hence s_j dL/ds_j = w_j' (dL/dM) w_j.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, orthonormal towards the root.
        gradients: Bond -> dL/dM of every batch (batch, bond, bond), M being on the side away from the root.
        root: The number of the root.

    Returns:
        Bond -> its scored singular values.

    Example:
        >>> factors = [torch.eye(2), torch.diag(torch.tensor([3.0, 2.0]))]
        >>> gradients = {"r": torch.diag(torch.tensor([0.3, 2.0]))[None]}  # dL/ds is 0.1 and 1
        >>> scored = score_tree([["r"], ["r"]], factors, gradients, root=1)["r"]
        >>> scored.scores, scored.values
        (tensor([2.0000, 0.3000]), tensor([2., 3.]))
    """
    scored: dict[str, ScoredValues] = {}
    for bond, (values, vectors) in bond_decompositions(factor_bonds, tensors, root).items():
        derivatives = torch.einsum("ij,bik,kj->bj", vectors, gradients[bond], vectors)  # s_j dL/ds_j of every batch
        scores = torch.where(values > NEGLIGIBLE_VALUE * values[0], derivatives.abs().mean(0), 0.0)
        order = scores.argsort(descending=True, stable=True)  # of equal scores the larger value comes first
        scored[bond] = ScoredValues(scores[order], values[order], vectors[:, order])
    return scored


def truncate_tree_by_importance(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget, gradients: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, float]]:
    """Keep the singular values of a chain or tree that have the highest scores.

    One bond after another, from the leaves to the root, each projected orthogonally in the tensor that the bonds before
    it have left: two bonds then never keep components that exclude each other. |T - T'|^2 is the sum of the discarded
    squares. No fit follows: it would bring back the largest values, whatever the loss needs.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        target: What chooses the ranks. A budget goes to the highest scores of all bonds together.
        gradients: Bond -> dL/dM of every batch (batch, bond, bond), see `bond_gradients`.

    Returns:
        The truncated factors, and bond -> the norm that the bond discarded.

    Example:
        >>> factors = [torch.eye(2), torch.diag(torch.tensor([3.0, 2.0]))]
        >>> target = TruncationTarget([["r"], ["r"]], (2, 2), {"r": 1})
        >>> gradients = {"r": torch.diag(torch.tensor([0.3, 2.0]))[None]}
        >>> truncate_tree_by_importance([["r"], ["r"]], factors, target, gradients)[1]  # the larger value goes
        {'r': 3.0}
    """
    root = most_connected_factor(factor_bonds)
    path = leaf_to_root_edges(factor_bonds, root)
    away = away_from_root(factor_bonds, gradients, root)
    factors, gradients = orthonormal_with_gradients(factor_bonds, tensors, away, root)
    scored = score_tree(factor_bonds, factors, gradients, root)
    ranks = target.choose(
        {bond: of_bond.values for bond, of_bond in scored.items()},
        scores={bond: of_bond.scores for bond, of_bond in scored.items()},
    )
    discarded: dict[str, float] = {}
    for child, bond, parent in path:
        scored = score_tree(factor_bonds, factors, gradients, root)
        rank, of_bond = ranks[bond], scored[bond]
        if target.discarded_per_bond:  # counted in what is left, so that the tolerance is kept
            rank = max(1, int((tail_norms(of_bond.values) > target.discarded_per_bond).sum()))
        discarded[bond] = float(of_bond.values[rank:].norm())
        if rank < len(of_bond.values):
            kept = of_bond.vectors[:, :rank]  # (bond, rank)
            for end in (child, parent):
                factors[end] = mode_product(factors[end], bond_axis(factor_bonds[end], bond), kept)
            gradients[bond] = kept.mT @ gradients[bond] @ kept
            factors, gradients = orthonormal_with_gradients(factor_bonds, factors, gradients, root)
    return factors, discarded


def truncate_columns_by_importance(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget, gradients: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, float]]:
    """Keep the columns of factors that share one bond (CP) that have the highest scores, as they are.

    Args:
        factor_bonds: The bonds of every factor: one, the same for all.
        tensors: The factors, (n, r) each.
        target: What chooses the number of columns: a rank or a budget.
        gradients: The bond -> dL/dM of every batch (batch, r, r).

    Returns:
        The factors with fewer columns, in their order, and the bond -> the norm that this discarded.

    Raises:
        ValueError: The target is an error.

    Example:
        >>> factors = [torch.ones(2, 2), torch.ones(3, 2), torch.tensor([[3.0, 2.0]])]
        >>> target = TruncationTarget([["r"]] * 3, (2, 3, 1), {"r": 1})
        >>> gradients = {"r": torch.diag(torch.tensor([0.3, 2.0]))[None]}
        >>> truncate_columns_by_importance([["r"]] * 3, factors, target, gradients)[0][2]
        tensor([[2.]])
    """
    if target.discarded_per_bond:
        # columns are not orthogonal, so that no norm of a column says what the sum loses
        raise ValueError("columns (CP) are chosen by importance for a rank or a budget, not for a tolerance")
    (bond,) = edges(factor_bonds)
    scores = gradients[bond].diagonal(dim1=1, dim2=2).abs().mean(0)  # (r,): M scales the columns
    order = scores.argsort(descending=True, stable=True)
    rank = target.choose({bond: scores[order]}, scores={bond: scores[order]})[bond]
    columns = order[:rank].sort().values
    factors = [tensor[:, columns] for tensor in tensors]
    return factors, {bond: distance(factor_bonds, tensors, factors)}
