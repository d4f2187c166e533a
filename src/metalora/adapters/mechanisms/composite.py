"""Composite factors: contractions of stored factors, which the network reads as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor

from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import Composite
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import Modes

BATCH, LETTERS = ascii_letters[0], ascii_letters[1:]  # of einsum: one letter for the examples, the others for modes


@dataclass(frozen=True)
class CompositeFactor:
    """One factor of a target's network that is a contraction of others.

    Attributes:
        name: Its name in the network.
        operands: The stored factors that are contracted.
        terms: The modes of each operand.
        modes: The modes of the contraction.
        shape: The sizes of the factor's own modes: the numbers of the contraction are read in this shape.

    Example:
        >>> composite = CompositeFactor("W", ("A", "B"), (("in", "r"), ("r", "out")), ("in", "out"), (4, 3))
        >>> composite.contract([torch.ones(4, 2), torch.ones(2, 3)]).shape
        torch.Size([4, 3])
        >>> composite.contract([torch.ones(5, 4, 2), torch.ones(2, 3)]).shape  # A differs by example
        torch.Size([5, 4, 3])
    """

    name: str
    operands: tuple[str, ...]
    terms: tuple[Modes, ...]
    modes: Modes
    shape: tuple[int, ...]

    def contract(self, operands: list[Tensor]) -> Tensor:
        """The factor, `(batch?, *shape)`, from operands `(batch?, *term)`."""
        letters = dict(zip(dict.fromkeys(mode for term in self.terms for mode in term), LETTERS, strict=False))
        inputs = []
        for operand, term in zip(operands, self.terms, strict=True):
            batch = BATCH if operand.ndim > len(term) else ""  # this operand differs by example
            inputs.append(batch + "".join(letters[mode] for mode in term))
        batched = any(term.startswith(BATCH) for term in inputs)
        output = BATCH * batched + "".join(letters[mode] for mode in self.modes)
        contraction = torch.einsum(f"{','.join(inputs)}->{output}", *operands)
        # Not a permutation: the numbers are read in the order in which they lie (see `mixed_slices` of the record).
        return contraction.reshape(*contraction.shape[: int(batched)], *self.shape)


@dataclass(frozen=True)
class CompositeHandler(Handler):
    """Puts composite factors in place of what they are made of.

    Attributes:
        composites: The composite factors.
    """

    composites: tuple[CompositeFactor, ...]

    def materialize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The composite factors, `(batch?, *shape)`, under their names; their operands are removed."""
        for composite in self.composites:
            values[composite.name] = composite.contract([values.pop(operand) for operand in composite.operands])
        return values

    def dependent_factors(self, names: Collection[str]) -> tuple[str, ...]:
        """The composites that have one of the names as an operand."""
        return tuple(composite.name for composite in self.composites if {*composite.operands} & {*names})


def bind(record: Composite, network: Network, sizes: Sizes) -> tuple[Network, Handler]:
    """The network with the composite factors in place of their operands, and the handler that makes them."""
    composites = []
    for name, spec in record.factors.items():
        operands = tuple(spec.split())
        terms = tuple(network.factors[operand] for operand in operands)
        all_modes = [mode for term in terms for mode in term]
        contracted = tuple(mode for mode in all_modes if all_modes.count(mode) == 1)  # a mode of two operands is summed
        own_modes = _mixed(contracted, network) if record.mixed_slices else contracted
        shape = tuple(sizes[mode] for mode in own_modes)
        composites.append(CompositeFactor(name, operands, terms, contracted, shape))
        network = network.with_composite(name, operands, own_modes)
    return network, CompositeHandler(tuple(composites))


def _mixed(modes: Modes, network: Network) -> Modes:
    """The modes as the code of FacT-TK reads the numbers (a, b, slice) of a weight that is cut into slices."""
    if "proj" not in modes:
        return modes
    left, right, slices = modes
    if slices in network.inputs:
        return right, slices, left
    return left, slices, right
