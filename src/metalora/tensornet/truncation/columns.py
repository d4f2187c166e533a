"""Truncation of factors that all share one bond (CP): the columns that matter most stay."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.gram import distance, tail_norms
from metalora.tensornet.topology import FactorBonds, edges
from metalora.tensornet.truncation.als import fit_to_reference
from metalora.tensornet.truncation.target import TruncationTarget

SMALLEST_REMAINDER = 1e-14  # of a column's square: below it, the columns before it explain all of it


def truncate_columns(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """Keep the columns that explain most of T = sum_r a_r b_r c_r ..., then fit all factors.

    The columns are chosen one after another, each with those before it at their best weights (orthogonal least squares
    on the Gram matrix of the r rank-one tensors); they stay in their order and get their best weights before the fit.
    The choice is greedy: it is exact if columns are zero or parallel; otherwise no distance from the best approximation
    is guaranteed (there need not be a best one).

    Args:
        factor_bonds: The bonds of every factor: one, the same for all.
        tensors: The factors, (n, r) each.
        target: What chooses the number of columns.

    Returns:
        The factors with fewer columns, and bond -> the norm that this discarded before the fit: at least |T - T'|.

    Example:
        >>> factors = [torch.eye(4)[:, :3], torch.eye(4)[:, :3], torch.tensor([[3.0, 0.0, 2.0]])]
        >>> target = TruncationTarget([["r"]] * 3, (4, 4, 1), {"r": 2})
        >>> truncate_columns([["r"]] * 3, factors, target)[0][2]  # the column of zeros goes
        tensor([[3., 2.]])
    """
    (bond,) = edges(factor_bonds)
    gram = torch.stack([tensor.mT @ tensor for tensor in tensors]).prod(0)  # (r, r), of the rank-one tensors
    order, explained = _order_of_columns(gram)
    rank = target.choose({bond: explained})[bond]
    if rank == len(gram):
        return list(tensors), {bond: 0.0}
    columns = torch.tensor(sorted(order[:rank]), device=gram.device)
    factors = [tensor[:, columns] for tensor in tensors]
    # the normal equations of the weights; the right side is the inner product of a column with the sum of all
    weights = torch.linalg.pinv(gram[columns][:, columns], hermitian=True) @ gram[columns].sum(1)
    factors[-1] = factors[-1] * weights
    # the two are equal but for rounding, and the larger one is a bound
    discarded = max(distance(factor_bonds, tensors, factors), float(tail_norms(explained)[rank]))
    return fit_to_reference(factor_bonds, tensors, factors), {bond: discarded}


def _order_of_columns(gram: Tensor) -> tuple[list[int], Tensor]:
    """The columns in the order in which they explain most of their sum, and the norm that each one explains.

    Args:
        gram: (r, r), the inner products of the rank-one tensors.
    """
    remaining_gram = gram.clone()  # of what the chosen columns leave of every column
    along_sum = gram.sum(1)  # inner products of what is left with the sum
    smallest = gram.diagonal() * SMALLEST_REMAINDER
    order: list[int] = []
    explained: list[float] = []
    for _ in range(len(gram)):
        squares = remaining_gram.diagonal()
        gains = torch.where(squares > smallest, along_sum.square() / squares.clamp_min(1e-300), 0.0)
        gains[order] = -1.0  # below zero, which is what a column of zeros explains
        best = int(gains.argmax())
        order.append(best)
        explained.append(float(gains[best]) ** 0.5)
        if explained[-1] > 0:
            length = squares[best].sqrt()
            column = remaining_gram[:, best] / length
            along_sum = along_sum - column * (along_sum[best] / length)
            remaining_gram = remaining_gram - torch.outer(column, column)
    return order, gram.new_tensor(explained)
