"""Tensor trains as chains of factors, and back.

A train is a list of cores (left rank, n, right rank), the outer ranks of both ends being one. A chain is the same
network with factors (n, *bonds), in any order of factors and bonds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metalora.tensornet.topology import FactorBonds, leaf_to_root_edges


@dataclass(frozen=True)
class TrainOrder:
    """The order of a chain's factors from one end to the other.

    Attributes:
        factors: The numbers of the factors; the end that is declared first comes first.
        bonds: The bonds between them, one less.

    Example:
        >>> TrainOrder.of_chain([["b"], ["a"], ["a", "b"]])
        TrainOrder(factors=(0, 2, 1), bonds=('b', 'a'))
    """

    factors: tuple[int, ...]
    bonds: tuple[str, ...]

    @classmethod
    def of_train(cls, num_cores: int) -> "TrainOrder":
        """Name the bonds of a train that has no names: r1, r2, ..."""
        return cls(tuple(range(num_cores)), tuple(f"r{bond}" for bond in range(1, num_cores)))

    @classmethod
    def of_chain(cls, factor_bonds: FactorBonds) -> "TrainOrder":
        """Walk along a chain from the end that is declared first."""
        # a chain of one factor has no bonds, and is its own end
        first_end = next(number for number, bonds in enumerate(factor_bonds) if len(bonds) <= 1)
        links = leaf_to_root_edges(factor_bonds, first_end)[::-1]  # root to leaf is from this end to the other
        factors = (first_end, *(child for child, _, _ in links))
        return cls(factors, tuple(bond for _, bond, _ in links))

    def standard(self) -> tuple["TrainOrder", tuple[tuple[str, ...], ...]]:
        """Return the order and the bonds of the same chain, declared from one end to the other, left bonds first."""
        positions = range(len(self.factors))
        left_bonds = [(), *((bond,) for bond in self.bonds)]
        right_bonds = [*((bond,) for bond in self.bonds), ()]
        factor_bonds = tuple(left + right for left, right in zip(left_bonds, right_bonds, strict=True))
        return TrainOrder(tuple(positions), self.bonds), factor_bonds

    def cores(self, factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Permute the factors (n, *bonds) of a chain to the cores (left, n, right) of a train."""
        cores: list[Tensor] = []
        for position, number in enumerate(self.factors):
            tensor, bonds = tensors[number], factor_bonds[number]
            if len(bonds) == 2:
                left_first = bonds[0] == self.bonds[position - 1]
                core = tensor.permute(1, 0, 2) if left_first else tensor.permute(2, 0, 1)  # (left, n, right)
            elif position == 0:
                core = tensor.reshape(1, len(tensor), -1)  # (1, n, right); right is 1 if there is no bond
            else:
                core = tensor.mT[..., None]  # (n, left) -> (left, n, 1)
            cores.append(core)
        return cores

    def factors_of(self, factor_bonds: FactorBonds, cores: Sequence[Tensor]) -> list[Tensor]:
        """Permute the cores (left, n, right) of a train to the factors (n, *bonds) of a chain."""
        by_number: dict[int, Tensor] = {}
        for position, (number, core) in enumerate(zip(self.factors, cores, strict=True)):
            bonds = factor_bonds[number]
            if len(bonds) == 2:
                left_first = bonds[0] == self.bonds[position - 1]
                by_number[number] = core.permute(1, 0, 2) if left_first else core.permute(1, 2, 0)  # (n, *bonds)
            elif len(bonds) == 0:
                by_number[number] = core.flatten()
            else:
                by_number[number] = core[0] if position == 0 else core[..., 0].mT  # (n, right) or (n, left)
        return [by_number[number] for number in range(len(cores))]
