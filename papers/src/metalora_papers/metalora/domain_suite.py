"""Suites cue, shift and natural: adapt to a domain that the input itself shows; four cells, two banks."""

from __future__ import annotations

import contextlib
import copy
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.knn import knn_accuracy, linear_probe_accuracy, nearest_class_mean_accuracy
from metalora.training.losses import distillation_loss, supervised_contrastive_loss
from metalora_papers.config import RunConfig
from metalora_papers.metalora.domain_images import BankAndQueries, DomainBatch, DomainImages
from metalora_papers.statistics import right_counts, variance_share
from metalora_papers.suite import device_of, on_device

IMAGE_SIZE = 28
TEST_SEED = 9_000_000
CALIBRATION_STEP, CALIBRATION_BATCHES = 10**6, 8  # batches that no training run of this length draws
CELLS = ("seen_domain", "unseen_domain"), ("seen_class", "unseen_class")


class DomainSuite:
    """Images of many domains and one frozen backbone; a `metalora_papers.suite.Suite`.

    Args:
        images: Where domains, batches, banks and queries are drawn from.
        model: The frozen backbone: images (batch, 3, 28, 28) -> features (batch, width).
        head: The frozen classifier of the seen classes: features -> logits (batch, classes).
        class_index: Label of a seen class -> its number in the head.
        run: The configuration.
    """

    averaged_losses = 50
    tokenizer = None

    def __init__(
        self,
        images: DomainImages[Any],
        model: nn.Module,
        head: nn.Module,
        class_index: dict[int, int],
        run: RunConfig,
    ):
        self.images, self.model, self.head, self.class_index = images, model, head, class_index
        self.config, self.seed, self.split = run.domains, run.seed, run.split
        self.full, self.penalty = run.full, run.train.penalty
        self.frozen = model  # a copy in a run that trains every weight

    @property
    def trained_model(self) -> nn.Module:
        """The backbone; nothing but the adapter is trained, unless the run trains every weight."""
        return self.model

    @property
    def example(self) -> Tensor:
        """An empty image (1, 3, 28, 28)."""
        return torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device_of(self.model))

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Before training, standardise the features that a generated adapter is made from; say what is trained."""
        if training and self.full:
            self.frozen = copy.deepcopy(self.model)
            self.model.requires_grad_(True)
        if training and adapter is not None and adapter.conditional:
            adapter.calibrate([self._batch(CALIBRATION_STEP + k).shifted for k in range(CALIBRATION_BATCHES)])

    def _batch(self, step: int) -> DomainBatch:
        config = self.config
        batch = self.images.batch("train", config.batch, self.seed * 10**7 + step, config.domains_per_batch)
        return on_device(batch, device_of(self.model))

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the loss of batch `step`; every example makes its own condition."""
        batch = self._batch(step)
        condition = adapter.condition(batch.shifted) if adapter is not None and adapter.conditional else None
        features = self._embed(batch.shifted, condition)
        loss = self._loss(features, batch, adapter)
        return loss if condition is None else loss + self.penalty * condition.penalty

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Report nothing in addition to the scores."""
        return {}

    def extra_modules(self) -> None:
        """Nothing is saved with the adapter."""

    def _loss(self, features: Tensor, batch: DomainBatch, adapter: Adapter | None) -> Tensor:
        if self.config.loss == "distillation":
            return distillation_loss(features, self._clean_features(batch, adapter))
        if self.config.loss == "contrastive":
            return supervised_contrastive_loss(features, batch.labels)
        targets = torch.tensor([self.class_index[label] for label in batch.labels.tolist()])
        return F.cross_entropy(self.head(features), targets.to(features.device))

    @torch.no_grad()
    def _clean_features(self, batch: DomainBatch, adapter: Adapter | None) -> Tensor:
        """Return the features of the clean images by the backbone as it was before the training."""
        with contextlib.nullcontext() if adapter is None else adapter.disabled():
            features: Tensor = self.frozen(batch.clean)
        return features

    def _embed(self, images: Tensor, condition: Condition | None) -> Tensor:
        features: Tensor = self.model(images) if condition is None else self.model(images, condition=condition)
        return features

    # ---- evaluation ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """k-NN accuracy in the four cells with both banks; the controls of a condition; nearest mean and probe."""
        results: dict[str, Any] = {"clean": {}, "own": {}, "nested": []}
        vectors, groups = [], []
        for domain_kind in CELLS[0]:
            sets = [self._sets(domain_kind, class_kind) for class_kind in CELLS[1]]
            for class_kind, banks in zip(CELLS[1], sets, strict=True):
                cell = f"{domain_kind}_{class_kind}"
                scores = [self._score(one, adapter) for one in banks]
                for bank in ("clean", "own"):
                    for metric in scores[0][bank]:
                        mean = fmean(score[bank][metric] for score in scores)
                        results[bank].setdefault(metric, {})[cell] = mean
                    accuracies = [score[bank]["k5"] for score in scores]
                    results["nested"].append(right_counts(f"{bank}.k5.{cell}", accuracies, len(banks[0].query_y)))
                if adapter is not None and adapter.conditional and cell == "unseen_domain_seen_class":
                    conditions = [adapter.condition(one.query_x) for one in banks]
                    results |= self._controls(banks, conditions, adapter)
                    vectors = [condition.vector() for condition in conditions]
                    groups = [torch.full((len(v),), k) for k, v in enumerate(vectors)]
        if vectors:
            results["domain_share"] = variance_share(torch.cat(vectors), torch.cat(groups))
        return results

    def _sets(self, domain_kind: str, class_kind: str) -> list[BankAndQueries]:
        config, seed = self.config, TEST_SEED + 1000 * self.seed
        split = "train" if domain_kind == "seen_domain" else self.split
        classes = class_kind.removesuffix("_class")
        domains = self.images.domains(split, config.test_domains, seed + (split == "train"))
        val = self.split == "val"  # a small set has few validation images of a class
        bank, queries = config.per_class // (2 if val else 1), config.queries // (4 if val else 1)
        sets = [
            self.images.bank_and_queries(domain, classes, bank, queries, seed + k, self.split)
            for k, domain in enumerate(domains)
        ]
        return [on_device(one, device_of(self.model)) for one in sets]

    def _features(self, images: Tensor, adapter: Adapter | None) -> Tensor:
        if adapter is None or not adapter.conditional:
            return self._embed(images, None)
        return self._embed(images, adapter.condition(images))

    def _score(self, sets: BankAndQueries, adapter: Adapter | None) -> dict[str, dict[str, float]]:
        query = self._features(sets.query_x, adapter)
        scores = {}
        for bank, images in (("clean", sets.clean_bank_x), ("own", sets.bank_x)):
            features = self._features(images, adapter)
            data = (features, sets.bank_y, query, sets.query_y)
            scores[bank] = {f"k{k}": knn_accuracy(*data, k) for k in (5, 10, 20)}
            scores[bank]["dino"] = knn_accuracy(*data, 20, weighting="dino")
            scores[bank]["nearest_mean"] = nearest_class_mean_accuracy(*data)
            scores[bank]["probe"] = linear_probe_accuracy(*data, max_iterations=200)
        return scores

    def _controls(self, banks: list[BankAndQueries], conditions: list[Condition], adapter: Adapter) -> dict[str, float]:
        """Queries under their own condition, their domain's mean, the mean of all, and another domain's."""
        overall = Condition.stack(conditions).mean()
        scores: dict[str, list[float]] = {}
        for k, (sets, own) in enumerate(zip(banks, conditions, strict=True)):
            bank = self._features(sets.clean_bank_x, adapter)
            other = conditions[(k + 1) % len(conditions)]
            found = {"own": own, "domain_mean": own.mean(), "global_mean": overall, "other": other}
            for name, condition in found.items():
                query = self._embed(sets.query_x, condition)
                accuracy = knn_accuracy(bank, sets.bank_y, query, sets.query_y, 5)
                scores.setdefault(f"{name}_condition", []).append(accuracy)
        return {name: fmean(values) for name, values in scores.items()}
