"""MetaTT's rank-adaptive sweep, Algorithm 1 of the paper as it is printed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.gram import tail_norms
from metalora.tensornet.truncation.gauge import largest_entry_signs


def metatt_algorithm_1(
    cores: Sequence[Tensor], ranks: Sequence[int], discarded_per_bond: float
) -> tuple[list[Tensor], list[float]]:
    """Truncate a tensor train from the left, then from the right (MetaTT, Algorithm 1).

    For every pair of neighbours, M = merge(G_k, G_{k+1}) = U S V', truncated. From left to right G_k = U and
    G_{k+1} = S V'; then from right to left G_k = U S and G_{k+1} = V'. In the first pass the cores on the right are not
    orthonormal, so that the discarded values do not bound the error.

    Args:
        cores: (r_{k-1}, n_k, r_k) each, r_0 = r_d = 1.
        ranks: The largest rank of every bond, (d - 1).
        discarded_per_bond: The largest norm that a bond may discard in a pass; 0: the ranks alone count.

    Returns:
        The cores, the first of which has the norm, and the larger of the two norms that each bond discarded.

    Example:
        >>> cores = [torch.diag(torch.tensor([3.0, 2.0]))[None], torch.eye(2)[..., None]]
        >>> truncated, discarded = metatt_algorithm_1(cores, ranks=[1], discarded_per_bond=0.0)
        >>> [tuple(core.shape) for core in truncated], discarded
        ([(1, 2, 1), (1, 2, 1)], [2.0])
    """
    cores = list(cores)
    bonds = range(len(cores) - 1)
    discarded = [0.0 for _ in bonds]
    for bond in bonds:  # left to right
        u, s, v, lost = _truncated_merge(cores[bond], cores[bond + 1], ranks[bond], discarded_per_bond)
        signs = largest_entry_signs(u.flatten(0, 1))  # u (left, n, rank): its columns are (left n, rank)
        cores[bond], cores[bond + 1] = u * signs, (signs * s)[:, None, None] * v  # S moves to the right
        discarded[bond] = lost
    for bond in reversed(bonds):  # right to left
        u, s, v, lost = _truncated_merge(cores[bond], cores[bond + 1], ranks[bond], discarded_per_bond)
        signs = largest_entry_signs(v.flatten(1).mT)  # v (rank, m, right): now V has orthonormal rows
        cores[bond], cores[bond + 1] = u * (s * signs), signs[:, None, None] * v  # S moves back to the left
        discarded[bond] = max(discarded[bond], lost)
    return cores, discarded


def _truncated_merge(
    left: Tensor, right: Tensor, rank: int, largest_discarded: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The truncated singular value decomposition of two merged cores, which are never merged.

    With a QR decomposition of both, the decomposition is that of a matrix (bond, bond).

    Returns:
        U (l, n, rank), S (rank,), V' (rank, m, r), and the norm of the values that were discarded.
    """
    left_q, left_r = torch.linalg.qr(left.flatten(0, 1))  # (left n, k), (k, bond)
    right_q, right_r = torch.linalg.qr(right.flatten(1).mT)  # (m right, l), (l, bond)
    u, s, v = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    tails = tail_norms(s)  # tails[r] is what rank r discards
    rank = min(rank, len(s))
    if largest_discarded > 0:
        rank = min(rank, max(1, int((tails > largest_discarded).sum())))
    discarded = float(tails[rank]) if rank < len(s) else 0.0
    new_left = (left_q @ u[:, :rank]).reshape(*left.shape[:2], rank)
    new_right = (v[:rank] @ right_q.mT).reshape(rank, *right.shape[1:])
    return new_left, s[:rank], new_right, discarded
