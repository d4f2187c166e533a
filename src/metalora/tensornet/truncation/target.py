"""The target of a truncation: ranks, an error, or a number of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor

from metalora.tensornet.gram import tail_norms
from metalora.tensornet.topology import FactorBonds, feasible_ranks
from metalora.tensornet.truncation.greedy import largest_values_first


@dataclass(frozen=True)
class TruncationTarget:
    """Chooses ranks from singular values.

    Attributes:
        factor_bonds: The bonds of every factor.
        open_sizes: The size of every factor's flattened open modes, before any compression.
        ranks: Bond -> the largest rank that is allowed.
        discarded_per_bond: The largest norm that a bond may discard; 0: an error is not the target.
        budget: The largest number of parameters in all factors; None: a number is not the target.

    Example:
        >>> import torch
        >>> target = TruncationTarget([["r"], ["r"]], (6, 4), {"r": 3}, budget=25)
        >>> target.choose({"r": torch.tensor([5.0, 1.0, 0.5])})  # 10 parameters a rank
        {'r': 2}
    """

    factor_bonds: FactorBonds
    open_sizes: tuple[int, ...]
    ranks: Mapping[str, int]
    discarded_per_bond: float = 0.0
    budget: int | None = None

    def choose(
        self,
        singular_values: Mapping[str, Tensor],
        share: float = 1.0,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, int]:
        """Choose the ranks.

        Args:
            singular_values: Bond -> its singular values (n,) in the order in which they are kept, the largest first if
                there are no scores.
            share: A factor of `discarded_per_bond`.
            scores: Bond -> the score (n,) of each value, the largest first and in one unit for all bonds; a budget goes
                to the largest scores instead of the relatively largest values.

        Returns:
            Bond -> rank, feasible for the network.

        Raises:
            ValueError: The budget is below the number of parameters at rank one.
        """
        ranks = {bond: min(self.ranks[bond], len(values)) for bond, values in singular_values.items()}
        if self.budget is not None:
            offered, relative = (singular_values, True) if scores is None else (scores, False)
            ranks = self._within_budget(offered, ranks, relative, self.budget)
        elif self.discarded_per_bond > 0:
            limit = share * self.discarded_per_bond
            for bond, values in singular_values.items():
                needed = int((tail_norms(values) > limit).sum())  # tails fall, so this one is within the limit
                ranks[bond] = min(ranks[bond], max(1, needed))
        # a low rank at one bond can leave those next to it wider than they can use
        return feasible_ranks(self.factor_bonds, self.open_sizes, ranks)

    def num_params(self, ranks: Mapping[str, int]) -> int:
        """Count the numbers in all factors at these ranks."""
        return sum(
            size * prod(ranks[bond] for bond in bonds)
            for size, bonds in zip(self.open_sizes, self.factor_bonds, strict=True)
        )

    def _within_budget(
        self, values: Mapping[str, Tensor], largest_ranks: Mapping[str, int], relative: bool, budget: int
    ) -> dict[str, int]:
        """Bond -> rank, the largest values first, as far as the budget goes."""
        smallest = self.num_params(dict.fromkeys(values, 1))  # rank one at every bond
        if smallest > budget:
            raise ValueError(f"a budget of {budget} numbers is below {smallest}, that of rank one")
        return largest_values_first(
            values,
            lambda ranks: self.num_params(ranks) <= budget,
            largest_ranks=largest_ranks,
            relative=relative,
        )
