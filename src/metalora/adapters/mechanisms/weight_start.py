"""LoRA that starts from a decomposition of the base's weight: ΔW = A0 B + A (B0 + B)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import StartFromWeight
from metalora.tensornet.network import Network, Sizes


@dataclass(frozen=True)
class WeightStartHandler(Handler):
    """Computes A0 and B0 from the base's weight, and adds the learned change of B to B0.

    Attributes:
        record: The decomposition.
        left_start: Name of A0.
        right_start: Name of B0.
        right_change: Name of B.
        rank: Size of their bond.
    """

    record: StartFromWeight
    left_start: str
    right_start: str
    right_change: str
    rank: int

    def materialize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """B0 + B, `(batch?, rank, out)`, under the name of B0; the other factors as they are."""
        values[self.right_start] = values[self.right_start] + values[self.right_change]
        return values

    def dependent_factors(self, names: Collection[str]) -> tuple[str, ...]:
        """B0 + B differs by example if B does."""
        return (self.right_start,) if self.right_change in names else ()

    def values_from_weight(self, weight: Tensor, scale: float) -> dict[str, Tensor]:
        """A0, `(inputs, rank)`, and B0, `(rank, out)`; nothing if the data that they come from are still to come."""
        if self.record.decomposition == "data":
            return {}
        if self.record.decomposition == "svd":
            left, right = _principal_factors(weight, self.rank, scale)
        else:
            left, right = _orthonormal_factors(weight, self.rank)
        return {self.left_start: left, self.right_start: right}


def _principal_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """PiSSA, eq. 2 and 3: A0 = U_r S_r^(1/2) and B0 = S_r^(1/2) V_r, with W = U S V and S divided by the scale."""
    if scale <= 0:
        raise ValueError(f"a start at the principal part of a weight needs a scale above zero, got {scale}: set alpha")
    u, s, v = torch.linalg.svd(weight, full_matrices=False)  # (inputs, n), (n,), (n, out), n the smaller side
    roots = (s[:rank] / scale).sqrt()  # the scale multiplies A B, so that scale A0 B0 is the principal part
    return u[:, :rank] * roots, roots[:, None] * v[:rank]


def _orthonormal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """OLoRA: W^T = Q R as PyTorch stores the weight, A0 = R_r^T and B0 = Q_r^T."""
    q, r = torch.linalg.qr(weight.mT)  # (out, n), (n, inputs)
    return r[:rank].mT, q[:, :rank].mT


def bind(record: StartFromWeight, network: Network, sizes: Sizes) -> tuple[Network, Handler]:
    """The unchanged network, and the handler of its starts."""
    (left_start, right_change), (_, right_start) = network.terms  # A0 B, and A (B0 + B) whose second factor is B0's
    rank = sizes[network.factors[left_start][-1]]
    return network, WeightStartHandler(record, left_start, right_start, right_change, rank)
