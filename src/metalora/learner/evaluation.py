"""Test episodes: fixed support sets and queries, the same for every method that is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora.learner.data import TaskPool
from metalora.learner.readouts import FittedReadout, Targets

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

MIN_SUPPORT = 3  # items of a class in a support set; classes with fewer are left out of an episode


@dataclass(frozen=True)
class TestEpisode:
    """A support set and its queries, as rows of a pool.

    Attributes:
        pool: Number of the pool.
        task: Name of the column.
        support: Rows of the support set, (n,).
        support_labels: Their classes, (n,), consecutive from 0.
        query: Rows of the queries, (m,); none shares a group with the support set.
        query_labels: Their classes, (m,).
        classes: Number of classes.
    """

    __test__ = False  # the name starts as those that pytest collects

    pool: int
    task: str
    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    classes: int


def draw_test_episodes(
    pools: Sequence[TaskPool], tasks: Sequence[tuple[int, str]], episodes: int, support: int, query: int, seed: int
) -> list[TestEpisode]:
    """Draw test episodes of tasks.

    Args:
        pools: The pools.
        tasks: Number of the pool and name of the column of each task.
        episodes: Episodes of a task; fewer if a task has too few labels for one.
        support: Size of a support set; half of the labelled inputs if there are too few.
        query: Number of queries; the same holds.
        seed: Seed of all draws.
    """
    drawn = []
    for number, (pool, task) in enumerate(tasks):
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        for _ in range(episodes):
            episode = _draw(pools[pool], pool, task, support, query, generator)
            if episode is not None:
                drawn.append(episode)
    return drawn


def _draw(
    pool: TaskPool, number: int, task: str, support: int, query: int, generator: torch.Generator
) -> TestEpisode | None:
    """Draw one episode; None if fewer than two classes have enough items."""
    codes = pool.columns[task].codes
    labelled = (codes >= 0).nonzero()[:, 0]
    groups = labelled if pool.groups is None else pool.groups[labelled]
    names, index = torch.unique(groups, return_inverse=True)
    is_support = torch.rand(len(names), generator=generator) < support / (support + query)
    order = torch.randperm(len(labelled), generator=generator)
    rows, of_support = labelled[order], is_support[index[order]]
    support_rows, query_rows = rows[of_support][:support], rows[~of_support][:query]
    counts = torch.bincount(codes[support_rows], minlength=int(codes.max()) + 1)
    classes = (counts >= MIN_SUPPORT).nonzero()[:, 0]
    support_rows = support_rows[torch.isin(codes[support_rows], classes)]
    query_rows = query_rows[torch.isin(codes[query_rows], classes)]
    if len(classes) < 2 or not len(query_rows):
        return None
    renumbered = torch.full((int(codes.max()) + 1,), -1)
    renumbered[classes] = torch.arange(len(classes))
    labels = renumbered[codes[support_rows]], renumbered[codes[query_rows]]
    return TestEpisode(number, task, support_rows, labels[0], query_rows, labels[1], len(classes))


class EpisodeFeatures:
    """The features of test episodes under a learner, as it is now; nothing is computed twice.

    Args:
        learner: The learner.
        pools: The pools of the episodes.
    """

    def __init__(self, learner: MetaLearner, pools: Sequence[TaskPool]):
        self.learner, self.pools = learner, pools
        self._frozen: dict[int, Tensor] = {}
        self._encoded: dict[int, Tensor] = {}
        self._last: dict[int, Tensor] = {}

    def forget_adapted(self) -> None:
        """Compute the features of the adapted network anew, since the adapter has changed."""
        self._encoded.clear()

    def frozen(self, pool: int) -> Tensor:
        """Return the frozen statistics of all inputs of a pool, (n, d)."""
        if pool not in self._frozen:
            self._frozen[pool] = self.learner.frozen_features(self.pools[pool].inputs)
        return self._frozen[pool]

    def last_layer(self, pool: int) -> Tensor:
        """Return the pooled last layer of the frozen network for all inputs of a pool, (n, width)."""
        if pool not in self._last:
            batches = self.learner.batches(self.pools[pool].inputs)
            self._last[pool] = torch.cat([self.learner.features.last_layer(batch) for batch in batches])
        return self._last[pool]

    def of(self, episode: TestEpisode) -> tuple[Tensor, Tensor]:
        """Return the features phi of the support set and of the queries, (n, d) and (m, d)."""
        inputs = self.pools[episode.pool].inputs
        if self.learner.generator is not None:
            support_items = [inputs[row] for row in episode.support.tolist()]
            query_items = [inputs[row] for row in episode.query.tolist()]
            frozen = self.frozen(episode.pool)[episode.support]
            condition = self.learner.support_condition(support_items, frozen, episode.support_labels)
            return self.learner.encode(support_items, condition), self.learner.encode(query_items, condition)
        if episode.pool not in self._encoded:
            self._encoded[episode.pool] = self.learner.encode(inputs)
        phi = self._encoded[episode.pool]
        return phi[episode.support], phi[episode.query]

    @torch.no_grad()
    def fitted(self, episode: TestEpisode) -> tuple[FittedReadout, Tensor]:
        """Return the readout that the support set gives, and the features of the queries."""
        support, query = self.of(episode)
        targets = Targets.classes(episode.support_labels.to(support.device), episode.classes)
        frozen_width = self.frozen(episode.pool).shape[1]
        groups = self.pools[episode.pool].groups
        of_support = None if groups is None else groups[episode.support].to(support.device)
        fitted = self.learner.readout.fit(support, targets, frozen_width=frozen_width, groups=of_support)
        return fitted, query

    def accuracy(self, episode: TestEpisode) -> float:
        """Return the share of the queries whose class is predicted, from 0 to 1."""
        fitted, query = self.fitted(episode)
        predicted = fitted.logits(query).argmax(1).cpu()
        return float((predicted == episode.query_labels).double().mean())
