"""Peers that are trained on every support set: a linear head, a LoRA with a linear head, SetFit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metalora.adapters.attach import attach, detach
from metalora.config import AdapterConfig
from metalora.learner.features import StageFeatures, batch_size, rows_of
from metalora_papers.learner.setfit import SetFit
from metalora_papers.learner.suites import LabelledEpisode, LearnerData

STEPS = (20, 40, 80)
HEAD_RATES = (1e-2, 5e-2)
LORA_RATES = (1e-3, 5e-3)
CHOOSING_TASKS = 3  # notions on whose validation episodes a setting is chosen; a LoRA takes minutes for them
BATCH = 32  # support items of a step
FORWARD = 64  # items of a forward pass without a gradient
LEAST_DEVIATION = 1e-3  # a feature that varies less is divided by this


@dataclass(frozen=True)
class Setting:
    """What is chosen on the validation split: number of steps and learning rate."""

    steps: int
    lr: float


class FittedPeer(Protocol):
    """A classifier that is trained on a support set."""

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried on the validation split."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps that are tried."""

    def predictions(self, episode: LabelledEpisode, lr: float, steps: Sequence[int], seed: int) -> dict[int, Tensor]:
        """Train on the support set and return the classes of the queries, (m,), after each number of steps."""


class HeadPeer:
    """A linear head on features of the network, trained alone or with a LoRA in the network, by AdamW.

    The features are standardised by the support set, as they are before the training. The head starts at zero.

    Args:
        model: The frozen network.
        all_stages: Read the statistics of all stages; otherwise the pooled last layer.
        adapter: The LoRA that is trained with the head; None: the head alone.
    """

    steps = STEPS

    def __init__(self, model: nn.Module, all_stages: bool, adapter: AdapterConfig | None):
        self.model, self.all_stages, self.adapter = model, all_stages, adapter
        self.rates = HEAD_RATES if adapter is None else LORA_RATES

    def predictions(self, episode: LabelledEpisode, lr: float, steps: Sequence[int], seed: int) -> dict[int, Tensor]:
        """Train on the support set and return the classes of the queries, (m,), after each number of steps."""
        with self._attached() as (read, parameters):
            support = _in_batches(read, episode.support)  # before the training, (n, d)
            mean, deviation = support.mean(0), support.std(0).clamp_min(LEAST_DEVIATION)
            head = nn.Linear(support.shape[1], int(episode.support_labels.max()) + 1, device=support.device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

            def logits(features: Tensor) -> Tensor:
                scores: Tensor = head((features - mean) / deviation)
                return scores

            optimiser = torch.optim.AdamW([*parameters, *head.parameters()], lr=lr)
            generator = torch.Generator().manual_seed(seed)
            predicted = {}
            for step in range(1, max(steps) + 1):
                rows = torch.randperm(len(support), generator=generator)[:BATCH]
                features = read(rows_of(episode.support, rows)) if parameters else support[rows]
                optimiser.zero_grad()
                cross_entropy(logits(features), episode.support_labels[rows]).backward()
                optimiser.step()
                if step in steps:
                    queries = _in_batches(read, episode.query)
                    predicted[step] = logits(queries).argmax(1)
        return predicted

    @contextmanager
    def _attached(self) -> Iterator[tuple[Callable[[Any], Tensor], list[nn.Parameter]]]:
        """Attach the LoRA for a while; yields what computes the features, and the parameters of the LoRA."""
        adapter = None if self.adapter is None else attach(self.model, self.adapter)
        features = StageFeatures(self.model, adapter)
        try:
            if not self.all_stages:
                read: Callable[[Any], Tensor] = features.adapted_last_layer
            else:
                read = features.frozen if adapter is None else features.adapted
            yield read, [] if adapter is None else list(adapter.parameters())
        finally:
            features.remove()
            if adapter is not None:
                detach(self.model)


@torch.no_grad()
def _in_batches(read: Callable[[Any], Tensor], inputs: Any) -> Tensor:
    """Return the features of inputs, (n, d), without a gradient."""
    chunks = torch.arange(batch_size(inputs)).split(FORWARD)
    return torch.cat([read(rows_of(inputs, rows)) for rows in chunks])


def make_peer(name: str, model: nn.Module, adapter: AdapterConfig | None) -> FittedPeer:
    """Return a peer by its name, one of `line_up.FITTED_PEERS` or "SetFit".

    Args:
        name: Name of the peer.
        model: The frozen network.
        adapter: The LoRA of the peers that have one.
    """
    if name == "SetFit":
        return SetFit(model)
    return HeadPeer(model, "all stages" in name, adapter if name.startswith("LoRA") else None)


def choose(peer: FittedPeer, episodes: Sequence[LabelledEpisode]) -> Setting:
    """Return the setting with the best mean accuracy on episodes of the validation split.

    Args:
        peer: The peer.
        episodes: The episodes.
    """
    scores = {Setting(steps, lr): 0.0 for lr, steps in product(peer.rates, peer.steps)}
    for (number, episode), lr in product(enumerate(episodes), peer.rates):
        for steps, predicted in peer.predictions(episode, lr, peer.steps, number).items():
            scores[Setting(steps, lr)] += _accuracy(predicted, episode)
    return max(scores, key=scores.__getitem__)


def fit_and_score(peer: FittedPeer, setting: Setting, episode: LabelledEpisode, seed: int) -> tuple[float, float]:
    """Return the accuracy on the queries, and the seconds of training and predicting.

    Args:
        peer: The peer.
        setting: Steps and learning rate.
        episode: The episode.
        seed: Seed of the batches.
    """
    started = time.perf_counter()
    predicted = peer.predictions(episode, setting.lr, (setting.steps,), seed)[setting.steps]
    return _accuracy(predicted, episode), time.perf_counter() - started


def _accuracy(predicted: Tensor, episode: LabelledEpisode) -> float:
    return float((predicted == episode.query_labels).double().mean())


def validation_episodes(data: LearnerData) -> list[LabelledEpisode]:
    """Return an episode of each of the first trained notions, on the validation split."""
    validation = data.validation()
    return [validation.test_episode(task, 0) for task in data.trained[:CHOOSING_TASKS]]
