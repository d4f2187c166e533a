"""Items with several columns of labels, groups and parts, and the fixed episodes on which every method is tested."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora.learner.data import LabelColumn, TaskPool

PARTS = ("train", "val", "test")
FEWEST = 3  # support items of a class; a class with fewer is left out of an episode
MISSING = -1


class Notion(NamedTuple):
    """One column of labels.

    Attributes:
        codes: Class numbers of the items, int64 (items,); -1 if an item has no label.
        class_names: Names of the classes, in the order of their numbers.
    """

    codes: Tensor
    class_names: tuple[str, ...]


class FixedEpisode(NamedTuple):
    """A task of one column.

    Attributes:
        support: Numbers of the labelled items, int64 (support,).
        support_labels: Their classes, 0 to classes - 1, int64 (support,).
        query: Numbers of the items to predict, int64 (queries,).
        query_labels: Their classes, int64 (queries,).
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class LabelledItems:
    """A set of inputs that is labelled in several ways.

    Attributes:
        name: Name of the set.
        inputs: Pictures, uint8 (items, h, w, 3), or texts.
        notions: Name of a column -> its labels.
        groups: Number of the group of every item, int64 (items,). Items of one group are variants of one thing: they
            are in the same part, and never on both sides of an episode.
        parts: "train", "val" and "test" -> numbers of the items, int64 (items of the part,).
        trained: The columns that training may use.
        never_trained: The columns that only tests use.
    """

    name: str
    inputs: Tensor | tuple[str, ...]
    notions: dict[str, Notion]
    groups: Tensor
    parts: dict[str, Tensor]
    trained: tuple[str, ...]
    never_trained: tuple[str, ...]

    def task_pool(self, part: str, columns: Sequence[str] | None = None) -> TaskPool:
        """Return a part as the pool that a learner is trained on.

        Args:
            part: Name of a part.
            columns: Names of columns; None: the trained ones.

        Returns:
            The pool; pictures as a tensor (items of the part, 3, h, w).

        Raises:
            ValueError: A column or the part is not known.
        """
        check_choice("part", part, PARTS)
        columns = self.trained if columns is None else columns
        rows = self.parts[part]
        labels = {}
        for column in columns:
            check_choice("column", column, tuple(self.notions))
            codes, class_names = self.notions[column]
            labels[column] = LabelColumn(column, codes[rows], class_names)
        return TaskPool(self._inputs(rows), labels, self.groups[rows], f"{self.name}, {part}")

    def _inputs(self, rows: Tensor) -> Tensor | list[str]:
        if isinstance(self.inputs, Tensor):
            return self.inputs[rows].permute(0, 3, 1, 2).contiguous()
        return [self.inputs[row] for row in rows.tolist()]

    def test_episode(
        self, column: str, number: int, seed: int, *, part: str = "test", support: int = 100, queries: int = 100
    ) -> FixedEpisode:
        """Draw an episode; equal arguments give the same one on every machine, whatever method is tested.

        Support and queries share no group. The classes have equally many items as far as their items reach. Classes
        with fewer than three support items, or without a query, are left out.

        Args:
            column: Name of a column.
            number: Number of the episode.
            seed: Seed of the run.
            part: Name of a part.
            support: Number of support items, before classes are left out.
            queries: Number of queries, before classes are left out.

        Raises:
            ValueError: The column or part is not known, or fewer than two classes remain.
        """
        check_choice("column", column, tuple(self.notions))
        check_choice("part", part, PARTS)
        codes = self.notions[column].codes
        generator = _generator(self.name, part, column, number, seed)
        rows = self.parts[part][codes[self.parts[part]] != MISSING]
        sides = two_sides(self.groups[rows], codes[rows], generator)
        drawn = [
            rows[side][balanced(codes[rows[side]], count, generator)]
            for side, count in zip(sides, (support, queries), strict=True)
        ]
        return self._episode(column, *drawn)

    def _episode(self, column: str, support: Tensor, query: Tensor) -> FixedEpisode:
        codes, names = self.notions[column]
        in_support, in_query = (codes[rows].bincount(minlength=len(names)) for rows in (support, query))
        classes = ((in_support >= FEWEST) & (in_query > 0)).nonzero()[:, 0]
        if len(classes) < 2:
            raise ValueError(f"{self.name}, column {column!r}: expected items of two classes, found {len(classes)}")
        support, query = (rows[torch.isin(codes[rows], classes)] for rows in (support, query))
        support_labels, query_labels = (torch.searchsorted(classes, codes[rows]) for rows in (support, query))
        return FixedEpisode(support, support_labels, query, query_labels)


def _generator(*names: str | int) -> torch.Generator:
    # Not hash(), which gives other numbers in every process.
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def two_sides(groups: Tensor, codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide items into two sides that share no group; each class has half of its groups on either side.

    Args:
        groups: Groups of the items, (n,).
        codes: Classes of the items, (n,). A group counts for the class that most of its items have.
        generator: Source of the random order.

    Returns:
        The numbers of the items of either side.
    """
    names, members = groups.unique(return_inverse=True)
    counts = torch.zeros(len(names), int(codes.max()) + 1, dtype=torch.long)
    counts.index_put_((members, codes), torch.ones_like(members), accumulate=True)
    main_class = counts.argmax(1)
    on_first_side = torch.zeros(len(names), dtype=torch.bool)
    first = True
    for label in main_class.unique():
        same_class = (main_class == label).nonzero()[:, 0]
        order = same_class[torch.randperm(len(same_class), generator=generator)]
        # A class with an odd number of groups gives one more to a side, in turn.
        half = (len(order) + first) // 2
        first ^= len(order) % 2 == 1
        on_first_side[order[:half]] = True
    chosen = on_first_side[members]
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


def balanced(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw items such that the classes have equally many, as far as their items reach.

    Args:
        codes: Classes of the items, (n,).
        count: Number of items to draw; all items if there are fewer.
        generator: Source of the random order.

    Returns:
        Numbers of different items, int64 (count,).
    """
    order = torch.randperm(len(codes), generator=generator)
    by_class = order[codes[order].argsort(stable=True)]
    sizes = codes.bincount()
    starts = sizes.cumsum(0) - sizes
    turn = torch.arange(len(codes)) - starts[codes[by_class]]  # 0 for the first item of every class, then 1, ...
    # One item of every class in each turn; a random number below one orders the classes in a turn.
    within = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    return by_class[(turn + within[codes[by_class]]).argsort(stable=True)[:count]]


def parts_by_group(groups: Tensor, strata: Tensor, shares: Sequence[float], seed: int) -> dict[str, Tensor]:
    """Divide items into train, val and test by their groups, with the same shares in every stratum.

    Args:
        groups: Groups of the items, (n,).
        strata: Number of the stratum of each item, (n,), such as its category; a group counts for that of its first
            item.
        shares: Shares of the three parts, which add up to one.
        seed: Seed of the random order.
    """
    generator = torch.Generator().manual_seed(seed)
    names, members = groups.unique(return_inverse=True)
    first_item = torch.full((len(names),), len(groups)).scatter_reduce(0, members, torch.arange(len(groups)), "amin")
    stratum = strata[first_item]
    part_of = torch.zeros(len(names), dtype=torch.long)
    for label in stratum.unique():
        same_stratum = (stratum == label).nonzero()[:, 0]
        order = same_stratum[torch.randperm(len(same_stratum), generator=generator)]
        # A random offset, so that strata of one or two groups do not all go to the same part.
        place = (torch.arange(len(order)) + torch.rand((), generator=generator)) / len(order)
        ends = torch.tensor(shares).cumsum(0)[:-1]
        part_of[order] = torch.bucketize(place.remainder(1), ends)
    return {name: (part_of[members] == number).nonzero()[:, 0] for number, name in enumerate(PARTS)}


def quantile_bins(values: Tensor, count: int) -> Tensor:
    """Number of the bin of each value; the bins have equally many values, int64 (n,).

    Args:
        values: Numbers, float (n,).
        count: Number of bins.
    """
    shares = torch.arange(1, count) / count
    return torch.bucketize(values, torch.quantile(values, shares.to(values)))
