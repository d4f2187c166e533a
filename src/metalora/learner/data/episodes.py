"""Draws from pools: a support set and queries, with several label sets for the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metalora.learner.data.groups import GroupSplit
from metalora.learner.data.label_sets import LEAST_SUPPORT, consecutive_classes
from metalora.learner.data.labels import LabelColumn
from metalora.learner.data.notions import ProceduralNotions
from metalora.learner.data.pool import TaskPool
from metalora.learner.data.prepared import PreparedInputs
from metalora.learner.data.preprocessing import Inputs
from metalora.learner.data.random_draws import chance, random_order, random_rows, random_whole_number

PROCEDURAL = "procedural"
ATTEMPTS = 30  # draws that are tried before a pool counts as unusable
SPARE = 4  # times as many candidates as items are drawn if groups must be kept apart
LEAST_ITEMS = 2 * (LEAST_SUPPORT + 1)  # a pool with fewer items cannot have two classes in support set and queries
BALANCED = 0.5  # probability that the classes of the first notion of a draw have the same number of items


@dataclass(frozen=True, eq=False)
class Draw:
    """A support set and queries with several label sets.

    Attributes:
        inputs: Prepared inputs of n items: those of the support set, then the queries.
        label_sets: Class numbers of the items under some notions, (n,) int64 each. The classes are numbered from 0; -1
            is an item that is not in the task. Every class has at least three items of the support set, and at least
            one query has a class.
        support: Number of items in the support set.
        statistics: Statistics of the frozen network for the items, (n, d), if the source has them.
        names: Name of every notion; "procedural" for one that nobody labelled.
        pool: Number of the pool from which the items come.
        rows: Positions of the items in the pool, (n,) int64.
    """

    inputs: Inputs
    label_sets: list[Tensor]
    support: int
    statistics: Tensor | None
    names: list[str]
    pool: int
    rows: Tensor


class EpisodeSource(Protocol):
    """What a learner is trained on."""

    def draw(self, generator: torch.Generator) -> Draw:
        """Return a new draw; it depends on the state of the generator only."""


@dataclass(frozen=True)
class EpisodeSettings:
    """The sizes and the mix of draws.

    Attributes:
        support: Items of a support set. A small pool is divided in the same proportion.
        query: Items whose labels are predicted.
        label_sets: Label sets of a draw, which share a forward pass.
        procedural: Probability that a label set is procedural and not one of the labelled notions.
        class_episodes: Probability that the items of a draw are all of a few classes of a notion, instead of any.
        ways: The fewest and the most classes of a class episode.

    Raises:
        ValueError: A setting is out of its range.
    """

    support: int = 60
    query: int = 48
    label_sets: int = 6
    procedural: float = 0.5
    class_episodes: float = 0.2
    ways: tuple[int, int] = (2, 6)

    def __post_init__(self) -> None:
        if self.support < 2 * LEAST_SUPPORT or self.query < 1 or self.label_sets < 1:
            raise ValueError(
                f"support {self.support}, query {self.query}, label_sets {self.label_sets}: expected at least "
                f"{2 * LEAST_SUPPORT}, 1 and 1"
            )
        for name in ("procedural", "class_episodes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability")
        if not 2 <= self.ways[0] <= self.ways[1]:
            raise ValueError(f"ways {self.ways}: expected (fewest, most), at least 2 classes")

    def sizes(self, available: int) -> tuple[int, int]:
        """Return the numbers of support items and queries for a pool with so many items."""
        if available >= self.support + self.query:
            return self.support, self.query
        query = max(1, available * self.query // (self.support + self.query))
        return available - query, query


class PoolEpisodes:
    """Draws from pools of labelled or unlabelled items.

    A draw chooses a pool, in proportion to the number of its notions, and the labelled notions of its label sets; the
    items come from those that have a label under the first of them. Columns with many classes cannot be drawn as they
    are, since few of their classes would have three items; they, and some of the others, are drawn as class episodes:
    a few classes, with the same number of items each. A notion that occurs again in a draw is reduced to some of its
    classes, so that no two label sets are the same. All other label sets are procedural.

    Args:
        prepared: The inputs of every pool.
        notions: What makes procedural notions; None: there are none.
        statistics: Statistics of the frozen network for every pool, (n, d) each, or None.
        settings: Sizes and mix.

    Raises:
        ValueError: A pool is too small, has a single group, or has no label column with two classes of four items
            while procedural notions are off.

    Example:
        >>> from metalora.learner.data.labels import encode_labels
        >>> from metalora.learner.data.preprocessing import ArrayPreprocessor
        >>> signs = [number % 2 for number in range(40)]
        >>> pool = TaskPool([[float(sign)] for sign in signs], {"sign": encode_labels(signs, "sign")})
        >>> episodes = PoolEpisodes([PreparedInputs(pool, ArrayPreprocessor())], None)
        >>> draw = episodes.draw(torch.Generator().manual_seed(0))
        >>> draw.names, draw.support, len(draw.rows)
        (['sign'], 23, 40)
    """

    def __init__(
        self,
        prepared: Sequence[PreparedInputs],
        notions: ProceduralNotions | None,
        statistics: Sequence[Tensor] | None = None,
        settings: EpisodeSettings | None = None,
    ):
        self.settings = settings or EpisodeSettings()
        self.notions = notions
        self.prepared = list(prepared)
        self.statistics = None if statistics is None else list(statistics)
        is_procedural = notions is not None and self.settings.procedural > 0
        self._sources = [PoolSource(part.pool, self.settings, is_procedural) for part in self.prepared]
        weights = [max(1, len(source.notions)) for source in self._sources]
        self._limits = torch.tensor(weights).cumsum(0)

    def draw(self, generator: torch.Generator) -> Draw:
        """Return a new draw, which depends on the state of the generator only.

        Raises:
            ValueError: No label set came out of many tries, for example because all inputs are equal.
        """
        ticket = random_whole_number(int(self._limits[-1]), generator)
        pool = int(torch.searchsorted(self._limits, ticket, right=True))
        source = self._sources[pool]
        for _ in range(ATTEMPTS):
            plan = source.plan(generator)
            items = source.items(plan, generator)
            if items is None:
                continue
            rows, support = items
            label_sets, names = source.label_sets(plan, rows, support, generator)
            inputs = self.prepared[pool].batch(rows)
            statistics = None if self.statistics is None else self.statistics[pool][rows]
            if source.is_procedural:
                missing = self.settings.label_sets - len(label_sets)
                procedural = self._procedural(missing, inputs, statistics, support, generator)
                label_sets += procedural
                names += [PROCEDURAL] * len(procedural)
            if label_sets:
                return Draw(inputs, label_sets, support, statistics, names, pool, rows)
        raise ValueError(
            f"{source.pool.name}: {ATTEMPTS} draws gave no task with two classes of {LEAST_SUPPORT} items and a query; "
            "more labels, or inputs that differ, are needed"
        )

    def _procedural(
        self, count: int, inputs: Inputs, statistics: Tensor | None, support: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Return procedural label sets; none if nothing tells the inputs apart."""
        assert self.notions is not None
        label_sets = [self.notions.labels(inputs, statistics, support, generator) for _ in range(count)]
        return [codes for codes in label_sets if (codes >= 0).any()]


@dataclass(frozen=True)
class Plan:
    """What a draw consists of.

    Attributes:
        notions: The labelled notions of the label sets, the first of which chooses the items. None is a procedural one.
        ways: Number of classes of a class episode of the first notion; 0: the draw is not a class episode.
    """

    notions: tuple[Notion, ...]
    ways: int


@dataclass(frozen=True, eq=False)
class Notion:
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
        found_notions = [_notion(column, widest) for column in pool.columns.values()]
        self.notions = [notion for notion in found_notions if len(notion.members) >= 2]
        if not self.notions and not is_procedural:
            raise ValueError(
                f"{pool.name}: no label column has two classes with {LEAST_SUPPORT + 1} items each, and procedural "
                "notions are off"
            )
        self.narrow = [notion for notion in self.notions if notion.is_narrow]

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


def _notion(column: LabelColumn, widest: int) -> Notion:
    counts = column.counts()
    enough = torch.nonzero(counts > LEAST_SUPPORT).flatten()  # three in the support set and a query
    by_class = column.codes.argsort(stable=True)  # the missing ones first
    missing = int((column.codes < 0).sum())
    parts = torch.split(by_class[missing:], counts.tolist())
    members = tuple(parts[number] for number in enough.tolist())
    labelled = torch.cat(members).sort().values if members else torch.empty(0, dtype=torch.int64)
    return Notion(column, members, labelled, is_narrow=2 <= len(members) <= widest)


def _balanced(members: Sequence[Tensor], wanted: int, generator: torch.Generator) -> Tensor:
    """Return items in random order, about the same number of every class."""
    per_class = -(-wanted // len(members))
    rows = torch.cat([part[random_rows(len(part), per_class, generator)] for part in members])
    return rows[random_order(len(rows), generator)][:wanted]


def _cycled(notions: Sequence[Notion], wanted: int, generator: torch.Generator) -> list[Notion]:
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
