"""Groups of items that must not be in both a support set and its queries."""

from __future__ import annotations

import torch
from torch import Tensor

from metalora.learner.data.random_draws import random_order

LISTED_GROUPS = 4096  # more groups than this get their sides by hashing, without a list of all groups
PRIME = 2_147_483_647


def classes_are_single_groups(codes: Tensor, groups: Tensor) -> bool:
    """Return whether no class has items of two groups, so that no query can have a class of its support set.

    Args:
        codes: Class number of every item, (n,) int64; -1: none.
        groups: Group of every item, (n,) int64.

    Example:
        >>> classes_are_single_groups(torch.tensor([0, 0, 1, -1]), torch.tensor([5, 5, 6, 7]))
        True
        >>> classes_are_single_groups(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 6, 6]))
        False
    """
    labelled = codes >= 0
    pairs = torch.unique(torch.stack([codes[labelled], groups[labelled]]), dim=1)  # (2, pairs)
    groups_of_classes = torch.bincount(pairs[0], minlength=1)
    return int(groups_of_classes.max()) < 2


class GroupSplit:
    """Divides the groups of a pool at random into two sides.

    Args:
        groups: Group of every item, (n,) int64.
        name: Name of the pool, for messages.

    Raises:
        ValueError: All items are in one group.

    Example:
        >>> split = GroupSplit(torch.tensor([0, 0, 1, 1]), "pairs")
        >>> side = split.random_side(torch.arange(4), 0.5, torch.Generator().manual_seed(0))
        >>> side[0] == side[1], side[1] == side[2]
        (tensor(True), tensor(False))
    """

    def __init__(self, groups: Tensor, name: str):
        different, self.groups = torch.unique(groups, return_inverse=True)
        self.count = len(different)
        if self.count < 2:
            raise ValueError(f"{name}: all items are in one group; a support set and its queries share no group")

    def random_side(self, rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """Return which items are on the first side; all items of a group are on the same side.

        Args:
            rows: Positions of items, (n,) int64.
            share: About this share of the groups is on the first side, and at least one on each.
            generator: Source of the randomness.

        Returns:
            True or False for every item, (n,).
        """
        groups = self.groups[rows]
        if self.count <= LISTED_GROUPS:
            on_first_side = min(max(round(self.count * share), 1), self.count - 1)
            places = random_order(self.count, generator)
            return places[groups] < on_first_side
        factor, shift = (torch.randint(1, PRIME, (2,), generator=generator)).tolist()
        hashes: Tensor = (groups * factor + shift) % PRIME
        return hashes < share * PRIME
