"""The suites of a learner: a backbone, episodes to train on, and the same test episodes for every method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from metalora.learner.data import EpisodeSource
from metalora.learner.features import StageFeatures, to_device
from metalora_papers.suite import device_of


class LabelledEpisode(NamedTuple):
    """A test episode, prepared for the backbone; but for the numbers of its items, it is on the backbone's device.

    Attributes:
        support: The support set, as the network takes it.
        support_labels: Its classes, int64 (n,), consecutive from 0.
        query: The queries, as the network takes them.
        query_labels: Their classes, int64 (m,).
        support_rows: Numbers of the support items, (n,), if episodes share items; None if every episode has its own.
        query_rows: Numbers of the queries, (m,).
        support_groups: Groups of the support items, (n,), if items have groups.
    """

    support: Any
    support_labels: Tensor
    query: Any
    query_labels: Tensor
    support_rows: Tensor | None = None
    query_rows: Tensor | None = None
    support_groups: Tensor | None = None


class LearnerData(Protocol):
    """The data of one suite."""

    @property
    def model(self) -> nn.Module:
        """The frozen backbone."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the notions that are trained."""

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the notions that are only tested."""

    def source(self, features: StageFeatures, label_sets: int) -> EpisodeSource:
        """Return the training episodes."""

    def test_episode(self, task: str, number: int) -> LabelledEpisode:
        """Return test episode `number` of a task; the same for every method."""

    def calibration_batches(self) -> Sequence[Any]:
        """Return batches by which the features of a generated adapter are standardised, on the backbone's device."""

    def validation(self) -> LearnerData:
        """Return the same data with the test episodes of the validation split."""


def frozen_statistics(features: StageFeatures, batches: Iterable[Any]) -> Tensor:
    """Return the statistics of the frozen network, (n, d), on the CPU, where training episodes are drawn.

    Args:
        features: Features of the network.
        batches: Inputs of the network, on any device.
    """
    device = device_of(features.model)
    return torch.cat([features.frozen(to_device(batch, device)).cpu() for batch in batches])
