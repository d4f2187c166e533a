"""SetFit's algorithm (Tunstall et al. 2022, arXiv:2209.11055): contrastive pairs, then a logistic regression.

Every weight of the encoder is fine-tuned, so that the cosine of two sentence embeddings becomes 1 for two sentences of
one class and 0 for two of different classes. A logistic regression is then fitted on the embeddings of the support set.
The package `setfit` is not used: it requires `evaluate` and `sentence-transformers[train]`, which this environment does
not have, and its algorithm fits in a few lines. An epoch here has at most 512 pairs, where the package draws 20 for
each sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

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
        model = copy.deepcopy(self.model).requires_grad_(True)
        features = StageFeatures(model, None)
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
        generator = torch.Generator().manual_seed(seed)
        predicted = {}
        for step in range(1, max(steps) + 1):
            first, second = draw_pairs(episode.support_labels, PAIRS_PER_STEP, generator)
            same = (episode.support_labels[first] == episode.support_labels[second]).float()
            rows, place = torch.cat([first, second]).unique(return_inverse=True)
            embedded = features.adapted_last_layer(rows_of(episode.support, rows))[place]
            cosines = cosine_similarity(embedded[: len(first)], embedded[len(first) :])
            optimiser.zero_grad()
            mse_loss(cosines, same).backward()
            optimiser.step()
            if step in steps:
                predicted[step] = _classified(features, episode)
        return predicted


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
def _classified(features: StageFeatures, episode: LabelledEpisode) -> Tensor:
    """Return the classes of the queries by a logistic regression on unit embeddings."""
    from sklearn.linear_model import LogisticRegression

    def embed(inputs: Any) -> Tensor:
        chunks = torch.arange(batch_size(inputs)).split(FORWARD)
        return normalize(torch.cat([features.adapted_last_layer(rows_of(inputs, rows)) for rows in chunks]))

    head = LogisticRegression(max_iter=1000).fit(embed(episode.support).numpy(), episode.support_labels.numpy())
    return torch.from_numpy(head.predict(embed(episode.query).numpy()))
