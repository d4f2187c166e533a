"""A step of meta-training: the queries of an episode judge the readout that its support set gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.learner.data import Draw, EpisodeSource
from metalora.learner.features import StageFeatures, rows_of, to_device
from metalora.learner.readouts import Readout, Targets


class EpisodeLoss:
    """The loss of one step: cross-entropy of the queries, averaged over the label sets of a draw.

    A static adapter serves all label sets of a draw with one forward. A generated one runs once for each label set,
    under the condition that its support set makes.

    Args:
        features: Features of the network and its adapter.
        readout: The readout that a support set gives; its own parameters are trained too.
        source: Where episodes are drawn from.
        penalty: Weight of the mean square of c - c0, for a generated adapter.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> from metalora.learner.data import ArrayPreprocessor, PoolEpisodes, PreparedInputs, TaskPool, encode_labels
        >>> from metalora.learner.readouts import make_readout
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        >>> adapter = attach(network, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> inputs = torch.randn(40, 4)
        >>> pool = TaskPool(inputs, {"positive": encode_labels(inputs[:, 0] > 0)})
        >>> source = PoolEpisodes([PreparedInputs(pool, ArrayPreprocessor())], None)
        >>> loss = EpisodeLoss(StageFeatures(network, adapter), make_readout("kernel-ridge"), source)
        >>> loss(step=0).shape
        torch.Size([])
    """

    def __init__(self, features: StageFeatures, readout: Readout, source: EpisodeSource, penalty: float = 0.01):
        self.features, self.readout, self.source, self.penalty = features, readout, source, penalty

    def __call__(self, step: int) -> Tensor:
        """Return the loss of one step, a scalar.

        Args:
            step: Number of the step. The episode depends on the global random state only, which `fit` seeds by it.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return self.of(self.source.draw(generator))

    def of(self, draw: Draw) -> Tensor:
        """Return the loss of a draw: the mean over its label sets, a scalar."""
        device = next(self.features.model.parameters()).device
        inputs = to_device(draw.inputs, device)
        frozen = self.features.frozen(inputs) if draw.statistics is None else draw.statistics.to(device)
        label_sets = [labels.to(device) for labels in draw.label_sets]
        adapter = self.features.adapter
        if adapter is not None and takes_support_condition(adapter):
            losses = [self._generated(inputs, draw.support, frozen, labels) for labels in label_sets]
        else:
            phi = torch.cat([frozen, self.features.adapted(inputs)], 1)  # (n, d)
            width = frozen.shape[1]
            losses = [episode_loss(self.readout, phi, labels, draw.support, width) for labels in label_sets]
        return torch.stack(losses).mean()

    def _generated(self, inputs: Any, support_size: int, frozen: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one label set under its own condition, with the penalty of this condition."""
        kept = labels >= 0
        support = int(kept[:support_size].sum())
        inputs, labels = rows_of(inputs, kept.nonzero()[:, 0]), labels[kept]
        frozen = frozen[kept]
        support_inputs = rows_of(inputs, slice(support))
        condition = support_condition(self.features, [support_inputs], frozen[:support], labels[:support])
        phi = torch.cat([frozen, self.features.adapted(inputs, condition)], 1)
        loss = episode_loss(self.readout, phi, labels, support, frozen.shape[1])
        return loss + self.penalty * condition.penalty


def episode_loss(readout: Readout, phi: Tensor, labels: Tensor, support: int, frozen_width: int) -> Tensor:
    """Return the cross-entropy of the queries under the readout that the support set gives, a scalar.

    Args:
        readout: The readout.
        phi: Features of the support set, then of the queries, (n, d).
        labels: Their classes, (n,), consecutive from 0; -1 for an item that is not in the episode.
        support: How many of the n items are the support set.
        frozen_width: How many of the d features are those of the frozen network; they come first.
    """
    kept = labels >= 0
    support_rows, query_rows = kept.clone(), kept.clone()
    support_rows[support:] = False
    query_rows[:support] = False
    classes = int(labels.max()) + 1
    fitted = readout.fit(phi[support_rows], Targets.classes(labels[support_rows], classes), frozen_width=frozen_width)
    return readout.loss(fitted.logits(phi[query_rows]), labels[query_rows])


def takes_support_condition(adapter: Adapter) -> bool:
    """Return True if a support set makes the condition; otherwise every example makes its own, or there is none."""
    return adapter.conditional and adapter.config.condition.scope == "support"


def support_condition(
    features: StageFeatures, batches: Sequence[Any], frozen: Tensor, labels: Tensor | None
) -> Condition:
    """Return the condition that a support set makes.

    The statistics of the frozen network are reused if the condition is made from the same stages.

    Args:
        features: Features of the network and its adapter.
        batches: The support set in batches, as the network takes it.
        frozen: Its frozen statistics, (n, d).
        labels: Its classes, (n,).
    """
    adapter = features.adapter
    assert adapter is not None
    condition = adapter.config.condition
    same_stages = condition.source == "stages" and condition.stages in ((), features.stages)
    if not (same_stages and frozen.shape[1] == adapter.required_conditioner.feature_size):
        frozen = torch.cat([adapter.features(batch) for batch in batches])
    return adapter.condition_from(frozen, labels)
