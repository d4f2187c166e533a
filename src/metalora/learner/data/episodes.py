"""Draws from pools: a support set and queries, with several label sets for the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metalora.learner.data.episode_settings import EpisodeSettings
from metalora.learner.data.label_sets import LEAST_SUPPORT
from metalora.learner.data.notions import ProceduralNotions
from metalora.learner.data.pool_source import PoolSource
from metalora.learner.data.prepared import PreparedInputs
from metalora.learner.data.preprocessing import Inputs
from metalora.learner.data.random_draws import random_whole_number

PROCEDURAL = "procedural"
ATTEMPTS = 30  # draws that are tried before a pool counts as unusable


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
        ValueError: A pool is too small, has a single group or a notion each class of which lies in one group; or it
            has no label column with two classes of four items while procedural notions are off.

    Example:
        >>> from metalora.learner.data import ArrayPreprocessor, TaskPool, encode_labels
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
