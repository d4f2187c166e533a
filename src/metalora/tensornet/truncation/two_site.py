"""Two neighbouring cores of a tensor train as one tensor, and back: the two moves of two-site DMRG."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from metalora.tensornet.truncation.gauge import largest_entry_signs
from metalora.tensornet.truncation.matrix_svd import Svd, leading_svd
from metalora.tensornet.truncation.train import TrainOrder
from metalora.tensornet.truncation.tree import orthogonalize


def merge_pair(cores: Sequence[Tensor], bond: int) -> tuple[list[Tensor], int]:
    """Bring a train into the form in which a single core is the merged tensor of a bond.

    All cores outside of the pair become orthonormal towards it. Of the pair, the core with the smaller outer side
    becomes an identity, and the other one the merged tensor G_k G_{k+1}: the bond is then as large as that side, and
    the tensor of the whole train is the same.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.
        bond: k, from 0, of the pair k and k + 1.

    Returns:
        The cores, and the number of the one that is the merged tensor.

    Example:
        >>> cores, merged = merge_pair([torch.ones(1, 4, 2), torch.ones(2, 3, 2), torch.ones(2, 5, 1)], bond=1)
        >>> [tuple(core.shape) for core in cores], merged
        ([(1, 4, 2), (2, 3, 5), (5, 5, 1)], 1)
    """
    order, factor_bonds = TrainOrder.of_train(len(cores)).standard()
    factors = orthogonalize(factor_bonds, order.factors_of(factor_bonds, cores), root=bond)
    # the right core of the pair is orthonormal towards the left one, which has the norm: merged, they have it together
    cores = order.cores(factor_bonds, factors)
    merged = torch.tensordot(cores[bond], cores[bond + 1], 1)  # (left, n, m, right)
    rows, columns = prod(merged.shape[:2]), prod(merged.shape[2:])
    if rows <= columns:
        cores[bond] = torch.eye(rows, dtype=merged.dtype, device=merged.device).reshape(*merged.shape[:2], rows)
        cores[bond + 1] = merged.reshape(rows, *merged.shape[2:])
        return cores, bond + 1
    cores[bond] = merged.reshape(*merged.shape[:2], columns)
    cores[bond + 1] = torch.eye(columns, dtype=merged.dtype, device=merged.device).reshape(columns, *merged.shape[2:])
    return cores, bond


def split_pair(
    cores: Sequence[Tensor], bond: int, rank: int, tolerance: float = 0.0, svd: Svd = "exact"
) -> tuple[list[Tensor], float]:
    """Split the merged tensor of a pair by its singular values: G_k = U, G_{k+1} = S V'.

    If the other cores are orthonormal towards the pair, as after `merge_pair`, this is the best truncation of the whole
    train on this bond.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.
        bond: k of the pair k and k + 1.
        rank: The largest size of the bond.
        tolerance: As few values stay as discard at most this part of the norm of the merged tensor.
        svd: How the values are computed, see `leading_svd`.

    Returns:
        The cores, and the norm that was discarded.

    Example:
        >>> cores, discarded = split_pair([torch.eye(3)[None], torch.diag(torch.tensor([3.0, 2, 1]))[..., None]], 0, 2)
        >>> [tuple(core.shape) for core in cores], discarded
        ([(1, 3, 2), (2, 3, 1)], 1.0)
    """
    cores = list(cores)
    merged = torch.tensordot(cores[bond], cores[bond + 1], 1)  # (left, n, m, right)
    u, s, v, discarded = leading_svd(merged.flatten(0, 1).flatten(1), rank, tolerance, svd)
    signs = largest_entry_signs(u)
    cores[bond] = (u * signs).reshape(*merged.shape[:2], len(s))
    cores[bond + 1] = ((signs * s)[:, None] * v).reshape(len(s), *merged.shape[2:])
    return cores, discarded
