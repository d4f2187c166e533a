"""Circuits that learn the change of a frozen start: ΔW = N(T0 + T) − N(T0)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import GateCircuit
from metalora.tensornet.network import Network, Sizes


@dataclass(frozen=True)
class FrozenStartHandler(Handler):
    """The gates T0 + T from the learned changes T and their frozen starts T0.

    Attributes:
        pairs: (T0, T), names of factors.

    Example:
        >>> import torch
        >>> values = {"T0": torch.eye(2), "T": torch.zeros(2, 2)}
        >>> FrozenStartHandler((("T0", "T"),)).materialize(values)["T"]
        tensor([[1., 0.],
                [0., 1.]])
    """

    pairs: tuple[tuple[str, str], ...]

    def materialize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """T0 + T, `(batch?, *modes)`, under the name of T; T0 stays as it is."""
        for start, change in self.pairs:
            values[change] = values[change] + values[start]
        return values


def bind(record: GateCircuit, network: Network, sizes: Sizes) -> tuple[Network, Handler | None]:
    """The unchanged network, and the handler of the starts; no handler for a circuit that has none."""
    if not record.learns_change:
        return network, None
    changes, starts = network.terms  # the circuit is the first term minus the second one
    return network, FrozenStartHandler(tuple(zip(starts, changes, strict=True)))
