"""A magnitude of each output: W + ΔW = g ⊙ (W + A B) with g = (|W| + d) / |W + A B|."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import Magnitude
from metalora.tensornet.network import Network, Sizes


@dataclass(frozen=True)
class MagnitudeHandler(Handler):
    """Rescales the outputs.

    Attributes:
        factor: The learned change d of the magnitude.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0]])  # one output with two inputs, of norm 5
        >>> MagnitudeHandler("d").output_scale(weight, 2 * weight[None], {"d": torch.tensor([5.0])})
        tensor([[1.]])
    """

    factor: str

    def own_factors(self) -> tuple[str, ...]:
        """The change of the magnitude, which is not a bias."""
        return (self.factor,)

    def output_scale(self, weight: Tensor, adapted: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """g `(batch or 1, out)`; the norm of W + A B has no gradient (DoRA, section 4.3).

        g is exactly 1 while d and A B are zero, so that a new adapter starts as the base, bit for bit.
        """
        change = factors[self.factor].reshape(-1, weight.shape[0]).to(weight.dtype)
        with torch.no_grad():  # the paper treats the norm as a constant, which saves memory in the backward
            norms: Tensor = torch.linalg.vector_norm(adapted, dim=-1)
        magnitude: Tensor = torch.linalg.vector_norm(weight, dim=-1) + change
        return magnitude / norms


def bind(record: Magnitude, network: Network, sizes: Sizes) -> tuple[Network, Handler]:
    """The unchanged network, and the handler of the magnitude."""
    return network, MagnitudeHandler(record.factor)
