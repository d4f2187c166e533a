"""The best pair of a smaller rank: Eckart-Young on Delta W = Left^T Right, without forming it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncated:
    """Left (rank, *inputs), Right (rank, out), the Frobenius norm of Delta W and that of what was discarded."""

    left: Tensor
    right: Tensor
    norm: float
    discarded: float


def truncated_svd(left: Tensor, right: Tensor, rank: int) -> Truncated:
    """The nearest pair of at most `rank`, by QR of both sides and an SVD of k x k numbers; computed in float64.

    Left^T = Qa Ra, Right^T = Qb Rb, Ra Rb^T = U S V^T; Left' = (Qa U sqrt(S))^T and Right' = (Qb V sqrt(S))^T, cut.
    left (k, *inputs), right (k, out). A pair whose k is not above `rank` is returned with its very bits.
    """
    a, b = left.double().flatten(1), right.double()
    if len(left) <= rank:
        square = ((a @ a.mT) * (b @ b.mT)).sum()  # |Left^T Right|_F^2 by the Gram matrices
        return Truncated(left, right, float(square.clamp_min(0).sqrt()), 0.0)
    (a, ra), (b, rb) = torch.linalg.qr(a.mT), torch.linalg.qr(b.mT)
    u, s, vh = torch.linalg.svd(ra @ rb.mT, full_matrices=False)
    root = s[:rank].sqrt()
    new_left = (a @ (u[:, :rank] * root)).mT.unflatten(1, left.shape[1:])
    new_right = (b @ (vh[:rank].mT * root)).mT
    return Truncated(new_left.to(left.dtype), new_right.to(right.dtype), float(s.norm()), float(s[rank:].norm()))
