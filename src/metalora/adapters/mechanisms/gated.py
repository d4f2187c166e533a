"""Gates: weights over the experts, by a softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import Gated
from metalora.tensornet.network import Network, Sizes


@dataclass(frozen=True)
class GatedHandler(Handler):
    """softmax(value / temperature) over the last mode of each gate.

    Attributes:
        factors: The factors that hold the logits.
        temperature: Divides the logits.

    Example:
        >>> import torch
        >>> GatedHandler(("g",), temperature=1.0).materialize({"g": torch.zeros(4)})
        {'g': tensor([0.2500, 0.2500, 0.2500, 0.2500])}
    """

    factors: tuple[str, ...]
    temperature: float

    def materialize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gates as weights, `(batch?, ..., expert)`; the other factors as they are."""
        for factor in self.factors:
            values[factor] = (values[factor] / self.temperature).softmax(-1)
        return values


def bind(record: Gated, network: Network, sizes: Sizes) -> tuple[Network, Handler]:
    """The unchanged network, and the handler of the gates."""
    return network, GatedHandler(record.factors, record.temperature)
