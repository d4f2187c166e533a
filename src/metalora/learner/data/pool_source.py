"""The choice of the items of a draw from a pool, and of the labelled notions that it is labelled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.learner.data.episode_settings import EpisodeSettings
from metalora.learner.data.groups import GroupSplit, classes_are_single_groups
from metalora.learner.data.label_sets import LEAST_SUPPORT, consecutive_classes
from metalora.learner.data.labels import LabelColumn
from metalora.learner.data.pool import TaskPool
from metalora.learner.data.random_draws import chance, random_order, random_rows, random_whole_number

SPARE = 4  # times as many candidates as items are drawn if groups must be kept apart
LEAST_ITEMS = 2 * (LEAST_SUPPORT + 1)  # a pool with fewer items cannot have two classes in support set and queries
BALANCED = 0.5  # probability that the classes of the first notion of a draw have the same number of items


@dataclass(frozen=True)
class Plan:
    """What a draw consists of.

    Attributes:
        notions: The labelled notions of the label sets, the first of which chooses the items. None is a procedural one.
        ways: Number of classes of a class episode of the first notion; 0: the draw is not a class episode.
    """

    notions: tuple[LabelledNotion, ...]
    ways: int


@dataclass(frozen=True, eq=False)
class LabelledNotion:
    """A label column with the positions of its items.

    Attributes:
        column: The labels.
        members: Positions of the items of every class that has enough of them.
        labelled: Positions of all items of these classes.
        is_narrow: Whether its classes are so few that a draw of any items has three of most.
    """

    column: LabelColumn
    members: tuple[Tensor, ...]
    labelled: Tensor
    is_narrow: bool


class PoolSource:
    """The items of a pool for draws.

    Args:
        pool: The pool.
        settings: Sizes and mix.
        is_procedural: Whether label sets may be procedural.

    Raises:
        ValueError: The pool cannot be used, see `PoolEpisodes`.
    """

    def __init__(self, pool: TaskPool, settings: EpisodeSettings, is_procedural: bool):
        if len(pool) < LEAST_ITEMS:
            raise ValueError(f"{pool.name}: {len(pool)} items; at least {LEAST_ITEMS} are needed")
        self.pool = pool
        self.settings = settings
        self.is_procedural = is_procedural
        self.groups = None if pool.groups is None else GroupSplit(pool.groups, pool.name)
        widest = max(2, settings.sizes(len(pool))[0] // (2 * LEAST_SUPPORT))
        all_notions = [_notion(column, widest) for column in pool.columns.values()]
        self.notions = [notion for notion in all_notions if len(notion.members) >= 2]
        if self.groups is not None:
            self._check_groups(self.groups.groups)
        if not self.notions and not is_procedural:
            raise ValueError(
                f"{pool.name}: no label column has two classes with {LEAST_SUPPORT + 1} items each, and procedural "
                "notions are off"
            )
        self.narrow = [notion for notion in self.notions if notion.is_narrow]

    def _check_groups(self, groups: Tensor) -> None:
        for notion in self.notions:
            if classes_are_single_groups(notion.column.codes, groups):
                raise ValueError(
                    f"{self.pool.name}: no two groups share a class of {notion.column.name!r}; a support set and its "
                    "queries share no group"
                )

    def plan(self, generator: torch.Generator) -> Plan:
        """Choose the notions of a draw and whether it is a class episode."""
        if self.notions and chance(self._share_of_class_episodes(), generator):
            return self._class_episode(generator)
        wanted = self._labelled_sets(generator)
        chosen = _cycled(self.narrow, wanted, generator)
        return Plan(tuple(chosen), 0)

    def items(self, plan: Plan, generator: torch.Generator) -> tuple[Tensor, int] | None:
        """Choose the items of a draw.

        Returns:
            Their positions, the support set first, and the size of the support set; None if one side is empty.
        """
        candidates = self._candidates(plan, generator)
        if self.groups is None:
            support, query = self.settings.sizes(len(candidates))
            return candidates[: support + query], support
        share = self.settings.support / (self.settings.support + self.settings.query)
        in_support = self.groups.random_side(candidates, share, generator)
        support_rows = candidates[in_support][: self.settings.support]
        query_rows = candidates[~in_support][: self.settings.query]
        if len(support_rows) < 2 * LEAST_SUPPORT or not len(query_rows):
            return None
        return torch.cat([support_rows, query_rows]), len(support_rows)

    def label_sets(
        self, plan: Plan, rows: Tensor, support: int, generator: torch.Generator
    ) -> tuple[list[Tensor], list[str]]:
        """Return the label sets of the labelled notions of a plan, and their names; unusable ones are left out."""
        label_sets, names = [], []
        for position, notion in enumerate(plan.notions):
            codes = notion.column.codes[rows]
            if notion in plan.notions[:position]:
                codes = _some_classes(codes, generator)
            elif not notion.is_narrow:
                codes = _most_frequent(codes, support, self.settings.ways[1])
            numbered = consecutive_classes(codes, support)
            if numbered is not None:
                label_sets.append(numbered)
                names.append(notion.column.name)
        return label_sets, names

    def _share_of_class_episodes(self) -> float:
        if self.narrow:
            return self.settings.class_episodes
        if not self.is_procedural:
            return 1.0
        return max(self.settings.class_episodes, 1 - self.settings.procedural)

    def _labelled_sets(self, generator: torch.Generator) -> int:
        """Return how many label sets are labelled; at least one if nothing else is possible."""
        if not self.is_procedural:
            return self.settings.label_sets
        return int((torch.rand(self.settings.label_sets, generator=generator) >= self.settings.procedural).sum())

    def _class_episode(self, generator: torch.Generator) -> Plan:
        first = self.notions[random_whole_number(len(self.notions), generator)]
        fewest, most = (min(ways, len(first.members)) for ways in self.settings.ways)
        ways = fewest + random_whole_number(most - fewest + 1, generator)
        wanted = max(1, self._labelled_sets(generator))
        others = [notion for notion in self.narrow if notion is not first]
        return Plan((first, *_cycled(others, wanted - 1, generator)), ways)

    def _candidates(self, plan: Plan, generator: torch.Generator) -> Tensor:
        """Return positions of items in random order; more than a draw needs if groups must be kept apart."""
        wanted = (self.settings.support + self.settings.query) * (SPARE if self.groups is not None else 1)
        if not plan.notions:
            return random_rows(len(self.pool), wanted, generator)
        notion = plan.notions[0]
        if plan.ways:
            chosen = random_order(len(notion.members), generator)[: plan.ways].tolist()
            return _balanced([notion.members[number] for number in chosen], wanted, generator)
        if chance(BALANCED, generator):
            return _balanced(notion.members, wanted, generator)
        return notion.labelled[random_rows(len(notion.labelled), wanted, generator)]


def _notion(column: LabelColumn, widest: int) -> LabelledNotion:
    counts = column.counts()
    enough = torch.nonzero(counts > LEAST_SUPPORT).flatten()  # three in the support set and a query
    by_class = column.codes.argsort(stable=True)  # the missing ones first
    missing = int((column.codes < 0).sum())
    parts = torch.split(by_class[missing:], counts.tolist())
    members = tuple(parts[number] for number in enough.tolist())
    labelled = torch.cat(members).sort().values if members else torch.empty(0, dtype=torch.int64)
    return LabelledNotion(column, members, labelled, is_narrow=2 <= len(members) <= widest)


def _balanced(members: Sequence[Tensor], wanted: int, generator: torch.Generator) -> Tensor:
    """Return items in random order, about the same number of every class."""
    per_class = -(-wanted // len(members))
    rows = torch.cat([part[random_rows(len(part), per_class, generator)] for part in members])
    return rows[random_order(len(rows), generator)][:wanted]


def _cycled(notions: Sequence[LabelledNotion], wanted: int, generator: torch.Generator) -> list[LabelledNotion]:
    """Return notions in random order, each once, and those that have enough classes to be reduced again and again."""
    order = random_order(len(notions), generator).tolist()
    chosen = [notions[number] for number in order][:wanted]
    reducible = [notion for notion in chosen if len(notion.members) >= 4]
    while reducible and len(chosen) < wanted:
        chosen.append(reducible[len(chosen) % len(reducible)])
    return chosen


def _some_classes(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Return class numbers in which only some of the classes remain, from two to all but one."""
    present = torch.unique(codes[codes >= 0])
    if len(present) < 3:
        return torch.full_like(codes, -1)
    count = 2 + random_whole_number(len(present) - 2, generator)
    staying = present[random_order(len(present), generator)[:count]]
    return torch.where(torch.isin(codes, staying), codes, -1)


def _most_frequent(codes: Tensor, support: int, count: int) -> Tensor:
    """Return class numbers in which only the most frequent classes of the support set remain."""
    labelled = codes[:support][codes[:support] >= 0]
    if not len(labelled):
        return codes
    sizes = torch.bincount(labelled)
    staying = sizes.argsort(descending=True, stable=True)[:count]
    return torch.where(torch.isin(codes, staying), codes, -1)
