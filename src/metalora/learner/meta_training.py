"""A step of meta-training: the queries of an episode judge the readout that its support set gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalora._util.sending import sent
from metalora.learner.data import Draw, EpisodeSource
from metalora.learner.features import StageFeatures, rows_of, to_device
from metalora.learner.generators import Generator, SupportSet
from metalora.learner.readouts import Readout, Targets


class EpisodeLoss:
    """The loss of one part of a step: cross-entropy of the queries, averaged over the label sets of a draw.

    A static adapter serves all label sets of a draw with one forward. A generated one runs once for each label set that
    it is trained on, under the condition that the support set of this label set makes.

    Args:
        features: Features of the network and its adapter.
        readout: The readout that a support set gives; its own parameters are trained too.
        source: Where episodes are drawn from.
        generator: What makes the condition of a generated adapter; None for a static one.
        penalty: Weight of the mean square of c - c0, for a generated adapter.
        static_parts: Number of first parts of steps in which a generated adapter has its condition-free core c0.
        forwards: Label sets of a draw that a generated adapter is trained on, each with a forward of its own.

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
        >>> loss(part=0).shape
        torch.Size([])
    """

    def __init__(
        self,
        features: StageFeatures,
        readout: Readout,
        source: EpisodeSource,
        generator: Generator | None = None,
        *,
        penalty: float = 0.01,
        static_parts: int = 0,
        forwards: int = 1,
    ):
        self.features, self.readout, self.source, self.generator = features, readout, source, generator
        self.penalty, self.static_parts, self.forwards = penalty, static_parts, forwards

    def __call__(self, part: int) -> Tensor:
        """Return the loss of one part of a step, a scalar.

        Args:
            part: Number of the part. The episode depends on the global random state, which `fit` seeds by it.
        """
        random = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        draw = self.source.draw(random)
        if self.generator is None or part < self.static_parts:
            return self._static(draw)
        chosen = torch.randperm(len(draw.label_sets), generator=random)[: self.forwards].tolist()
        return torch.stack([self._generated(draw, draw.label_sets[number]) for number in chosen]).mean()

    def _static(self, draw: Draw) -> Tensor:
        """Return the mean loss over all label sets of a draw, from one forward pass."""
        inputs, frozen = self._prepared(draw)
        adapter = self.features.adapter
        condition = adapter.neutral() if adapter is not None and self.generator is not None else None
        phi = torch.cat([frozen, self.features.adapted(inputs, condition)], 1)  # (n, d)
        losses = [episode_loss(self.readout, phi, labels, draw.support, frozen.shape[1]) for labels in draw.label_sets]
        return torch.stack(losses).mean()

    def _generated(self, draw: Draw, labels: Tensor) -> Tensor:
        """Return the loss of one label set under its own condition, with the penalty of this condition."""
        assert self.generator is not None
        inputs, frozen = self._prepared(draw)
        rows = (labels >= 0).nonzero()[:, 0]  # on the CPU, as all that is decided here
        support = int((rows < draw.support).sum())
        labels, rows = labels[rows], sent(rows, frozen.device)
        inputs, frozen = rows_of(inputs, rows), frozen[rows]
        labels_of_support = sent(labels[:support], frozen.device)
        of_support = SupportSet(rows_of(inputs, slice(support)), frozen[:support], labels_of_support)
        condition = self.generator(self.features, self.readout, of_support)
        phi = torch.cat([frozen, self.features.adapted(inputs, condition)], 1)
        loss = episode_loss(self.readout, phi, labels, support, frozen.shape[1])
        penalised: Tensor = loss + self.penalty * condition.penalty
        return penalised

    def _prepared(self, draw: Draw) -> tuple[Any, Tensor]:
        """Return the inputs of a draw on the device of the network, and their frozen statistics (n, d)."""
        device = next(self.features.model.parameters()).device
        inputs = to_device(draw.inputs, device)
        frozen = self.features.frozen(inputs) if draw.statistics is None else sent(draw.statistics, device)
        return inputs, frozen


def episode_loss(readout: Readout, phi: Tensor, labels: Tensor, support: int, frozen_width: int) -> Tensor:
    """Return the cross-entropy of the queries under the readout that the support set gives, a scalar.

    Args:
        readout: The readout.
        phi: Features of the support set, then of the queries, (n, d).
        labels: Their classes, (n,), consecutive from 0; -1 for an item that is not in the episode. They lie on the CPU,
            so that a GPU is not waited for to learn which items these are.
        support: How many of the n items are the support set.
        frozen_width: How many of the d features are those of the frozen network; they come first.
    """
    rows = (labels >= 0).nonzero()[:, 0]
    support_rows, query_rows = rows[rows < support], rows[rows >= support]
    targets = Targets.classes(labels[support_rows], int(labels.max()) + 1)
    fitted = readout.fit(phi[sent(support_rows, phi.device)], targets, frozen_width=frozen_width)
    logits = fitted.logits(phi[sent(query_rows, phi.device)])
    return readout.loss(logits, sent(labels[query_rows], phi.device))
