"""The leading singular values of a matrix, exactly or by a random range finder."""

from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.gram import tail_norms

Svd = Literal["exact", "randomised"]

OVERSAMPLING = 8  # columns of the random range above the rank
POWER_PASSES = 2  # each multiplies the ratios of the singular values with their squares


def leading_svd(
    matrix: Tensor, rank: int, tolerance: float = 0.0, svd: Svd = "exact"
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Decompose a matrix, truncated to a rank and to a relative error.

    Args:
        matrix: (rows, columns).
        rank: The largest rank.
        tolerance: As few values stay as discard at most tolerance |matrix|, if the rank allows it; 0: the rank alone
            counts.
        svd: "randomised": in a random range with power passes (Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1).
            It costs O(rows · columns · rank) and not O(rows · columns · the smaller of the two), and it is as good if
            the values fall. The range has a fixed seed.

    Returns:
        U (rows, r), S (r,), V' (r, columns) and the norm that was discarded; with "randomised" the difference of two
        norms, so that it is rounding below about 1e-8 |matrix| (float64).

    Example:
        >>> u, s, v, discarded = leading_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2)
        >>> s, discarded
        (tensor([3., 2.]), 1.0)
    """
    outside = 0.0  # the square of what the random range does not have, which is discarded, too
    if svd == "randomised":
        u, s, v = _in_a_random_range(matrix, rank)
        outside = float((matrix.square().sum() - s.square().sum()).clamp_min(0))
    else:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = min(rank, len(s))
    tails = (tail_norms(s).square() + outside).sqrt()  # tails[r] is what rank r discards
    if tolerance > 0:
        rank = min(rank, max(1, int((tails > tolerance * tails[0]).sum())))
    discarded = float(tails[rank]) if rank < len(s) else outside**0.5
    return u[:, :rank], s[:rank], v[:rank], discarded


def _in_a_random_range(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition of the matrix projected on a range of `rank` columns and some more."""
    rows, columns = matrix.shape
    width = min(rank + OVERSAMPLING, rows, columns)
    generator = torch.Generator().manual_seed(0)  # not the global one: a run draws the same numbers with either
    start = torch.randn(columns, width, generator=generator, dtype=torch.float64).to(matrix)
    basis = torch.linalg.qr(matrix @ start).Q  # (rows, width)
    for _ in range(POWER_PASSES):
        basis = torch.linalg.qr(matrix.mT @ basis).Q  # a QR decomposition between the products keeps small values
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, v = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return basis @ u, s, v
