"""Suite attributes: train on episodes, evaluate a support set's notion of similarity by k-NN."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import between_class_share, stage_statistics
from metalora.knn import knn_accuracy, lda_transform
from metalora.training.losses import matching_loss, prototypical_loss, supervised_contrastive_loss
from metalora_papers.config import RunConfig
from metalora_papers.metalora.attributes import AttributeImages, Episode
from metalora_papers.metalora.backbones import SampleBatch
from metalora_papers.statistics import right_counts, variance_share
from metalora_papers.suite import device_of, on_device

Metric = Callable[..., tuple[Tensor, ...]]
UNSEEN = "class (unseen)"
TEST_SEED = 7_000_000
CALIBRATION_STEP, CALIBRATION_BATCHES = 10**6, 8  # batches that no pre-training of this length draws


class EpisodeSuite:
    """Images with attributes and one frozen backbone; a `metalora_papers.suite.Suite`.

    Args:
        images: Where episodes are drawn from.
        model: The frozen backbone: images (batch, 3, size, size) -> features (batch, width).
        run: The configuration.
        sample: Batch number -> images and labels of the seen classes, as in the pre-training.
        normalisation: Mean and standard deviation per channel that the backbone was trained with, if it states them.
    """

    averaged_losses = 50
    tokenizer = None

    def __init__(
        self,
        images: AttributeImages,
        model: nn.Module,
        run: RunConfig,
        sample: SampleBatch,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ):
        self.images, self.model = images, model
        self.config, self.seed, self.split = run.episodes, run.seed, run.split
        self.full, self.penalty = run.full, run.train.penalty
        self.frozen = model  # a copy in a run that trains every weight
        self.sample, self.normalisation = sample, normalisation

    @property
    def trained_model(self) -> nn.Module:
        """The backbone; nothing but the adapter is trained, unless the run trains every weight."""
        return self.model

    @property
    def example(self) -> Tensor:
        """An empty image (1, 3, size, size)."""
        return torch.zeros(1, 3, self.config.size, self.config.size, device=device_of(self.model))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images as the backbone was trained on: (image - mean) / std, if it states them."""
        if self.normalisation is None:
            return images
        mean, std = (torch.tensor(values)[:, None, None] for values in self.normalisation)
        return (images - mean) / std

    def normalised_episode(self, episode: Episode) -> Episode:
        """Return the episode as the backbone takes it: normalised, and on its device."""
        support_x, query_x = self.normalised(episode.support_x), self.normalised(episode.query_x)
        return on_device(replace(episode, support_x=support_x, query_x=query_x), device_of(self.model))

    def calibration_batches(self) -> list[Tensor]:
        """Return batches as in the pre-training, on the device of the backbone."""
        steps = range(CALIBRATION_STEP, CALIBRATION_STEP + CALIBRATION_BATCHES)
        return [self.normalised(self.sample(step)[0]).to(device_of(self.model)) for step in steps]

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Before training, standardise the features that a generated adapter is made from; say what is trained."""
        if training and self.full:
            self.frozen = copy.deepcopy(self.model)
            self.model.requires_grad_(True)
        if training and adapter is not None and adapter.conditional:
            adapter.calibrate(self.calibration_batches())

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the loss of episode `step`: the support set makes the condition, the queries judge it."""
        names = self.config.trained
        attribute = names[int(torch.randint(len(names), ()))]
        episode = self.train_episode(attribute, self.seed * 10**6 + step)
        condition = None
        if adapter is not None and adapter.conditional:
            condition = adapter.condition(episode.support_x, episode.support_y)
        support, query = self.embed(episode, condition)
        loss = self._metric_loss(support, episode.support_y, query, episode.query_y)
        return loss if condition is None else loss + self.penalty * condition.penalty

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Report nothing in addition to the scores."""
        return {}

    def extra_modules(self) -> None:
        """Nothing is saved with the adapter."""

    def train_episode(self, attribute: str, seed: int) -> Episode:
        """One episode of the training images; the class task has its own ways of drawing classes."""
        config = self.config
        ways, blended = 0, False
        if attribute == "class":
            ways, blended = config.class_ways, float(torch.rand(())) < config.blended_classes
        return self.normalised_episode(
            self.images.episode(attribute, "train", config.support, config.query, seed, ways=ways, blended=blended)
        )

    def _metric_loss(self, support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor) -> Tensor:
        if self.config.loss == "contrastive":
            both, labels = torch.cat([support, query]), torch.cat([support_y, query_y])
            return supervised_contrastive_loss(both, labels, self.config.temperature)
        loss = {"matching": matching_loss, "prototypical": prototypical_loss}[self.config.loss]
        return loss(support, support_y, query, query_y, self.config.temperature)

    def embed(self, episode: Episode, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """Features of support and queries under one condition, (n, d) each."""
        images = torch.cat([episode.support_x, episode.query_x])
        features = self.model(images) if condition is None else self.model(images, condition=condition)
        return features[: len(episode.support_x)], features[len(episode.support_x) :]

    # ---- evaluation ------------------------------------------------------------------------------------------------
    @property
    def tasks(self) -> tuple[str, ...]:
        """Everything that is scored: trained and held-out attributes, and the class task on unseen classes."""
        return (*self.config.trained, *self.config.held_out, UNSEEN)

    def test_episode(self, task: str, number: int) -> Episode:
        """One test episode: base images of the test files; the same for every method."""
        config = self.config
        attribute, classes = ("class", "unseen") if task == UNSEEN else (task, "seen")
        seed = TEST_SEED + 1000 * self.tasks.index(task) + number + 100_000 * self.seed
        return self.normalised_episode(
            self.images.episode(attribute, self.split, config.test_support, config.test_query, seed, classes)
        )

    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Scores of the model as it is: k-NN accuracy per task and its means, with the controls of a condition."""
        conditions: dict[str, list[Condition]] = {}
        if adapter is not None and adapter.conditional:
            conditions = self._conditions(adapter)
        scores: dict[str, dict[str, list[float]]] = {}
        for task in self.tasks:
            for number in range(self.config.test_episodes):
                episode = self.test_episode(task, number)
                own = conditions[task][number] if conditions else None
                by_variant = self._score(episode, own, adapter)
                if conditions:
                    other = conditions[self._other(task)][number]
                    by_variant |= self._controls(episode, other, self._mean_condition(conditions))
                for variant, value in by_variant.items():
                    scores.setdefault(variant, {}).setdefault(task, []).append(value)
        results: dict[str, Any] = {variant: self._summary(by_task) for variant, by_task in scores.items()}
        results["nested"] = self._nested(scores)
        if conditions:
            results["own_condition"] = results["k5"]["trained_mean"]
            results["other_condition"] = results["other_support"]["trained_mean"]
            results["task_share"] = self._task_share(conditions)
        return results

    def _mean_condition(self, conditions: dict[str, list[Condition]]) -> Condition:
        """Return the mean over all episodes of the trained tasks."""
        return Condition.stack([each for task in self.config.trained for each in conditions[task]]).mean()

    def _task_share(self, conditions: dict[str, list[Condition]]) -> float:
        """Return the share of the variance of the conditions that lies between the trained tasks."""
        trained = self.config.trained
        vectors = torch.cat([each.vector() for task in trained for each in conditions[task]])
        tasks = torch.tensor([trained.index(task) for task in trained for _ in conditions[task]])
        return variance_share(vectors, tasks)

    def _conditions(self, adapter: Adapter) -> dict[str, list[Condition]]:
        numbers = range(self.config.test_episodes)
        episodes = {task: [self.test_episode(task, n) for n in numbers] for task in self.tasks}
        return {t: [adapter.condition(e.support_x, e.support_y) for e in episodes[t]] for t in self.tasks}

    def _other(self, task: str) -> str:
        """The attribute whose support set is handed over as the wrong one."""
        names = self.config.trained
        home = "class" if task == UNSEEN else task
        return names[(names.index(home) + 1) % len(names)] if home in names else names[0]

    def _score(self, episode: Episode, condition: Condition | None, adapter: Adapter | None) -> dict[str, float]:
        support, query = self.embed(episode, condition)
        labels = (episode.support_y, episode.query_y)
        found = {f"k{k}": knn_accuracy(support, labels[0], query, labels[1], k) for k in (5, 10, 20)}
        with adapter.disabled() if adapter is not None else contextlib.nullcontext():
            statistics = stage_statistics(self.frozen, torch.cat([episode.support_x, episode.query_x]))
        plain = statistics[: len(support)], statistics[len(support) :]
        metrics: dict[str, Metric] = {
            "adapted": lambda fit, y, *parts: tuple(part[0] for part in parts),
            "lda": lambda fit, y, *parts: _projected(fit[0], y, [part[0] for part in parts]),
            "stats_lda": lambda fit, y, *parts: _projected(fit[1], y, [part[1] for part in parts]),
            "fused": lambda fit, y, *parts: tuple(
                fuse(part[0], weighted)
                for part, weighted in zip(parts, weighted_statistics(fit[1], y, [p[1] for p in parts]), strict=True)
            ),
        }
        both, asked = (support, plain[0]), (query, plain[1])
        for name in ("lda", "stats_lda", "fused"):
            bank, queries = metrics[name](both, labels[0], both, asked)
            found[name] = knn_accuracy(bank, labels[0], queries, labels[1], 5)
        if condition is not None:
            best = max(metrics, key=lambda name: _cross_validated(metrics[name], both, labels[0]))
            bank, queries = metrics[best](both, labels[0], both, asked)
            found["selected"] = knn_accuracy(bank, labels[0], queries, labels[1], 5)
        return found

    def _controls(self, episode: Episode, other: Condition, mean: Condition) -> dict[str, float]:
        found = {}
        for name, condition in (("other_support", other), ("mean_condition", mean)):
            support, query = self.embed(episode, condition)
            found[name] = knn_accuracy(support, episode.support_y, query, episode.query_y, 5)
        return found

    def _summary(self, by_task: dict[str, list[float]]) -> dict[str, Any]:
        means = {task: fmean(values) for task, values in by_task.items()}
        trained = [means[name] for name in self.config.trained]
        held_out = [means[name] for name in self.config.held_out]
        return {
            "trained_mean": fmean(trained),
            "held_out_mean": fmean(held_out) if held_out else None,
            "unseen_class": means[UNSEEN],
            "per_task": means,
        }

    def _nested(self, scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
        """Accuracy by episode, for intervals; the tasks of a mean are fixed: episode k is number k of each."""
        groups = {"trained_mean": self.config.trained, "held_out_mean": self.config.held_out, "unseen_class": (UNSEEN,)}
        found = []
        for variant in ("k5", "stats_lda", "other_support"):
            for metric, tasks in groups.items():
                if tasks and variant in scores:
                    episodes = zip(*(scores[variant][task] for task in tasks), strict=True)
                    accuracies = [fmean(values) for values in episodes]
                    queries = self.config.test_query * len(tasks)
                    found.append(right_counts(f"{variant}.{metric}", accuracies, queries))
        return found


def weighted_statistics(fit: Tensor, labels: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Standardised features weighted by their between-class share: a metric read off the support set, no training.

    w_j = max(share_j - e, 0), with e = (classes - 1) / (n - 1) the share that chance alone gives.
    """
    mean, std = fit.mean(0), fit.std(0).clamp_min(1e-4)
    chance = (len(labels.unique()) - 1) / (len(labels) - 1)
    weight = (between_class_share(fit, labels) - chance).clamp_min(0)
    return [(part - mean) / std * weight for part in parts]


def _projected(fit: Tensor, labels: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    project = lda_transform(fit, labels)
    return tuple(project(part) for part in parts)


def _cross_validated(metric: Metric, both: tuple[Tensor, Tensor], labels: Tensor, folds: int = 3) -> float:
    """k-NN accuracy of a metric on the support set itself, each fold judged by the others."""
    fold = torch.arange(len(labels), device=labels.device) % folds
    right = 0.0
    for k in range(folds):
        kept, asked = (tuple(part[mask] for part in both) for mask in (fold != k, fold == k))
        bank, queries = metric(kept, labels[fold != k], kept, asked)
        right += knn_accuracy(bank, labels[fold != k], queries, labels[fold == k], 5) / folds
    return right


def fuse(a: Tensor, b: Tensor) -> Tensor:
    """Two features side by side, each of unit length, so that their cosines add with equal weight."""
    return torch.cat([nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)], -1)
