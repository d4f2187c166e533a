"""The truncated singular value decomposition of a product of two matrices, which is not formed (Eckart-Young)."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor


@dataclass(frozen=True)
class TruncatedProduct:
    """A product of two matrices at a smaller rank.

    Attributes:
        left: (rank, *inputs).
        right: (rank, out).
        norm: The Frobenius norm of the product before.
        discarded: The Frobenius norm of what was discarded.
    """

    left: Tensor
    right: Tensor
    norm: float
    discarded: float

    @property
    def error(self) -> float:
        """The norm of what was discarded over that of the product; 0 for a product that was zero."""
        return self.discarded / self.norm if self.norm else 0.0


def relative_error(products: Iterable[TruncatedProduct]) -> float:
    """Return |discarded| / |product| over several products together.

    Example:
        >>> kept, cut = torch.ones(1, 1), torch.zeros(1, 1)
        >>> round(relative_error([TruncatedProduct(kept, kept, 3.0, 0.0), TruncatedProduct(cut, cut, 4.0, 4.0)]), 6)
        0.8
    """
    products = list(products)
    norm = hypot(*(product.norm for product in products))
    return hypot(*(product.discarded for product in products)) / norm if norm else 0.0


def truncated_svd(left: Tensor, right: Tensor, rank: int) -> TruncatedProduct:
    """Find the nearest product Left^T Right of at most `rank`; computed in float64.

    Left^T = Qa Ra, Right^T = Qb Rb and Ra Rb^T = U S V^T, of k x k numbers. Then Left' = (Qa U S^1/2)^T and
    Right' = (Qb V S^1/2)^T, truncated.

    Args:
        left: (k, *inputs), flattened to (k, in).
        right: (k, out).
        rank: The largest rank.

    Returns:
        The truncated product; if k is not above `rank`, the two tensors themselves.

    Example:
        >>> left, right = torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> product = truncated_svd(left, right, rank=2)
        >>> product.left.shape, round(product.discarded, 6)
        (torch.Size([2, 3]), 1.0)
    """
    a, b = left.double().flatten(1), right.double()  # (k, in), (k, out)
    if len(left) <= rank:
        square = ((a @ a.mT) * (b @ b.mT)).sum()  # |Left^T Right|_F^2, by the Gram matrices
        return TruncatedProduct(left, right, float(square.clamp_min(0).sqrt()), 0.0)
    qa, ra = torch.linalg.qr(a.mT)  # (in, m), (m, k) with m = min(in, k)
    qb, rb = torch.linalg.qr(b.mT)  # (out, n), (n, k) with n = min(out, k)
    u, s, vh = torch.linalg.svd(ra @ rb.mT, full_matrices=False)
    root = s[:rank].sqrt()  # fewer than `rank` if a side is narrower; shared, so that both factors have one size
    new_left = (qa @ (u[:, :rank] * root)).mT  # (rank, in)
    new_right = (qb @ (vh[:rank].mT * root)).mT  # (rank, out)
    # Qa and Qb are orthonormal, so the norm of the product is that of s
    norm, discarded = float(s.norm()), float(s[rank:].norm())
    new_left = new_left.reshape(len(root), *left.shape[1:]).to(left.dtype)
    return TruncatedProduct(new_left, new_right.to(right.dtype), norm, discarded)
