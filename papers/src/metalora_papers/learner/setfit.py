"""SetFit's algorithm (Tunstall et al. 2022, arXiv:2209.11055): contrastive pairs, then a logistic regression.

Every weight of the encoder is fine-tuned, so that the cosine of two sentence embeddings becomes 1 for two sentences of
one class and 0 for two of different classes. A logistic regression is then fitted on the embeddings of the support set.
The package `setfit` is not used: it requires `evaluate` and `sentence-transformers[train]`, which this environment does
not have, and its algorithm fits in a few lines. An epoch here has at most 512 pairs, where the package draws 20 for
each sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from metalora.learner.features import StageFeatures, batch_size, rows_of
from metalora_papers.learner.suites import LabelledEpisode

PAIRS_PER_STEP = 16
STEPS = (16, 32)  # 256 or 512 pairs, each seen once
RATES = (2e-5, 1e-4)
FORWARD = 64  # sentences of a forward pass without a gradient


class SetFit:
    """A sentence encoder that is fine-tuned on a support set; a `metalora_papers.learner.fitted.FittedPeer`.

    Args:
        model: The encoder; a copy of it is trained.
    """

    rates, steps = RATES, STEPS

    def __init__(self, model: nn.Module):
        self.model = model

    def predictions(self, episode: LabelledEpisode, lr: float, steps: Sequence[int], seed: int) -> dict[int, Tensor]:
        """Train on the support set and return the classes of the queries, (m,), after each number of steps."""
        predicted = {}
        for step, features in self.training(episode.support, episode.support_labels, lr, max(steps), seed):
            if step in steps:
                head = fit_head(features, episode.support, episode.support_labels)
                classes = torch.from_numpy(head.predict(embeddings(features, episode.query)))
                predicted[step] = classes.to(episode.query_labels.device)
        return predicted

    def training(
        self, support: Any, labels: Tensor, lr: float, steps: int, seed: int
    ) -> Iterator[tuple[int, StageFeatures]]:
        """Train a copy of the encoder; yields the number of each step, from 1, and the features of the copy after it.

        Args:
            support: The support set, as the encoder takes it.
            labels: Its classes, (n,).
            lr: Learning rate of AdamW.
            steps: Number of steps.
            seed: Seed of the pairs.
        """
        model = copy.deepcopy(self.model).requires_grad_(True)
        features = StageFeatures(model, None)
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            first, second = draw_pairs(labels, PAIRS_PER_STEP, generator)
            same = (labels[first] == labels[second]).float()
            rows, place = torch.cat([first, second]).unique(return_inverse=True)
            embedded = features.adapted_last_layer(rows_of(support, rows))[place]
            cosines = cosine_similarity(embedded[: len(first)], embedded[len(first) :])
            optimiser.zero_grad()
            mse_loss(cosines, same).backward()
            optimiser.step()
            yield step, features


def draw_pairs(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs of different items, half of them of one class and half of two.

    Args:
        labels: Classes of the support set, (n,).
        count: Number of pairs.
        generator: Source of the draws.

    Returns:
        The items of the pairs, (count,) each.
    """
    alike = labels[:, None] == labels
    different = ~alike
    alike = alike.triu(1)  # no item with itself
    pairs = []
    for mask in (alike, different.triu(1)):
        rows = mask.nonzero()
        pairs.append(rows[torch.randint(len(rows), (count // 2,), generator=generator)])
    first, second = torch.cat(pairs).unbind(1)
    return first, second


@torch.no_grad()
def embeddings(features: StageFeatures, inputs: Any) -> np.ndarray[Any, Any]:
    """Return unit embeddings of inputs, (n, width).

    Args:
        features: The features of the encoder.
        inputs: What the encoder takes.
    """
    chunks = torch.arange(batch_size(inputs)).split(FORWARD)
    pooled = torch.cat([features.adapted_last_layer(rows_of(inputs, rows)) for rows in chunks])
    return normalize(pooled).cpu().numpy()


def fit_head(features: StageFeatures, support: Any, labels: Tensor) -> Any:
    """Return a logistic regression on the unit embeddings of a support set.

    Args:
        features: The features of the encoder.
        support: The support set, as the encoder takes it.
        labels: Its classes, (n,).
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(embeddings(features, support), labels.cpu().numpy())
