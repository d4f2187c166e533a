"""Linear discriminant analysis of the features, with shrinkage."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.calibration import best_temperature, mean_log_likelihood
from metalora.learner.readouts.discriminant import class_prior, prior_without_self
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.rules import LinearRule
from metalora.learner.readouts.standardise import centre
from metalora.learner.readouts.targets import Targets
from metalora.learner.readouts.weights import even_scaling

SHRINKAGES = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)
SMALLEST_VARIANCE = 1e-6  # share of the total variance of the features: all items of each class may be equal
LARGEST_TEMPERATURE = 3000.0  # a covariance of a few items in many dimensions makes logits hundreds of times too large
NUMBERS_AT_ONCE = 20_000_000


class DiscriminantAnalysis(Readout):
    """Linear discriminant analysis on standardised features with a shrunk covariance.

    The covariance is (1 - s) W + s tr(W) / d I, with W the pooled covariance within classes. The shrinkage s is learned
    (0.5 at the start); in use it has the best leave-one-out likelihood. The leave-one-out logits are exact but for the
    standardisation, which stays. A covariance of few items in many dimensions makes them hundreds of times too large,
    and the temperature undoes it. With two or three items of a class, leaving one out takes much of what the class
    shows: the temperature is then too large, and the probabilities are less sure than they could be.

    Args:
        balanced: Whether the logits leave out how often classes occur in the support set.

    Example:
        >>> fitted = DiscriminantAnalysis().fit(torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3))
        >>> fitted.logits(torch.randn(4, 5)).shape
        torch.Size([4, 3])
    """

    name: ClassVar[str] = "lda"

    def __init__(self, *, balanced: bool = False):
        super().__init__(balanced=balanced)
        self.shrinkage_logit = nn.Parameter(torch.zeros(()))

    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        centred = centre(support)
        scaling = even_scaling(centred)
        features = centred.deviations * scaling.factor
        shrinkage = self.shrinkage_logit.sigmoid().to(features.dtype)
        rule = self._rule(features, targets.matrix, shrinkage, 1.0)
        with torch.no_grad():
            without_self = LeaveOneOut(features.double(), targets.matrix.double(), self.balanced)
            logits = without_self.logits(shrinkage.double()).to(features.dtype)
        return self._fitted(scaling, features, rule, logits, targets)

    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        scaling = even_scaling(centre(support))
        features = scaling(support)
        weights = self._item_weights(targets)
        without_self = LeaveOneOut(features, targets.matrix, self.balanced)
        best_likelihood = -float("inf")
        for shrinkage in SHRINKAGES:
            logits = without_self.logits(shrinkage)
            temperature = float(best_temperature(logits, targets, weights, LARGEST_TEMPERATURE))
            likelihood = float(mean_log_likelihood(logits / temperature, targets, weights))
            if likelihood > best_likelihood:
                best_likelihood, best = likelihood, (shrinkage, temperature, logits / temperature)
        rule = self._rule(features, targets.matrix, features.new_tensor(best[0]), best[1])
        return self._fitted(scaling, features, rule, best[2], targets, temperature=best[1])

    def _rule(self, features: Tensor, one_hot: Tensor, shrinkage: Tensor, temperature: float) -> LinearRule:
        """Return the rule of features (n, d) with logits that are divided by a temperature."""
        slope, offset = discriminant_analysis(features, one_hot, shrinkage)
        if not self.balanced:
            offset = offset + class_prior(one_hot)
        return LinearRule(slope / temperature, offset / temperature)


def discriminant_analysis(features: Tensor, one_hot: Tensor, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a linear discriminant analysis with equal priors; it can be differentiated.

    Args:
        features: Features, (n, d).
        one_hot: Classes, one-hot, (n, classes).
        shrinkage: Share of the mean variance in the covariance, from 0 (excluded) to 1, a scalar.

    Returns:
        Slopes (d, classes) and offsets (classes,).

    Example:
        >>> slope, offset = discriminant_analysis(torch.randn(6, 9), torch.eye(2).repeat(3, 1), torch.tensor(0.5))
        >>> slope.shape
        torch.Size([9, 2])
    """
    items, width = features.shape
    used = _used_features(features)
    means = (one_hot.mT @ features) / one_hot.sum(0)[:, None]
    deviations = features - one_hot @ means
    within = (1 - shrinkage) / items
    diagonal = _diagonal(deviations.square().sum() / items, features.square().sum() / items, shrinkage, used)
    identity = torch.eye(min(width, items), dtype=features.dtype, device=features.device)
    if width <= items:
        covariance = within * deviations.mT @ deviations + diagonal * identity
        slope = torch.linalg.solve(covariance, means.mT)
    else:  # (a X^T X + b I)^-1 = (I - X^T (b / a I + X X^T)^-1 X) / b
        gram = within * deviations @ deviations.mT + diagonal * identity
        inner = torch.linalg.solve(gram, within * deviations @ means.mT)
        slope = (means.mT - deviations.mT @ inner) / diagonal
    return slope, -(means * slope.mT).sum(1) / 2


def _used_features(features: Tensor) -> Tensor:
    """Return how many of the features (n, d) are not zero everywhere, at least 1, a scalar ()."""
    return (features != 0).any(0).sum().clamp_min(1)


def _diagonal(variance_within: Tensor, variance: Tensor, shrinkage: Tensor | float, used: Tensor) -> Tensor:
    """Return what is added to the diagonal of the covariance, from variances that are summed over the features."""
    return (shrinkage * variance_within + SMALLEST_VARIANCE * variance.clamp_min(1e-12)) / used


class LeaveOneOut:
    """Logits of each item by the discriminant analysis of the other items, for several shrinkages.

    In the eigenbasis of the scatter, the shrunk scatter of the other items is a diagonal minus one outer product.

    Example:
        >>> features, one_hot = torch.randn(6, 9).double(), torch.eye(2).repeat(3, 1).double()
        >>> LeaveOneOut(features, one_hot, balanced=False).logits(0.5).shape
        torch.Size([6, 2])
    """

    def __init__(self, features: Tensor, one_hot: Tensor, balanced: bool):
        self.used = _used_features(features)
        self.variance = features.square().sum() / len(features)
        self.one_hot = one_hot
        self.balanced = balanced
        points = _coordinates(features)
        means = (one_hot.mT @ points) / one_hot.sum(0)[:, None]
        deviations = points - one_hot @ means
        self.eigenvalues, vectors = torch.linalg.eigh(deviations.mT @ deviations)
        self.points, self.means, self.deviations = points @ vectors, means @ vectors, deviations @ vectors
        own_count = one_hot @ one_hot.sum(0)  # (n,)
        self.others = (own_count - 1).clamp_min(1)
        self.growth = own_count / self.others

    def logits(self, shrinkage: Tensor | float) -> Tensor:
        """Return the logits, (n, classes), for one shrinkage."""
        items, classes = self.one_hot.shape
        items_at_once = max(1, NUMBERS_AT_ONCE // (classes * self.points.shape[1]))
        chunks = torch.split(torch.arange(items, device=self.points.device), items_at_once)
        joined = torch.cat([self._logits_of(chunk, shrinkage) for chunk in chunks])
        return joined if self.balanced else joined + prior_without_self(self.one_hot)

    def _logits_of(self, chunk: Tensor, shrinkage: Tensor | float) -> Tensor:
        """Return the logits, (chunk, classes), of some items without the prior."""
        rest = max(len(self.points) - 1, 1)
        within = (1 - shrinkage) / rest
        removed = self.deviations[chunk]  # (chunk, r)
        growth = self.growth[chunk]
        scatter = (self.eigenvalues.sum() - growth * removed.square().sum(1)).clamp_min(0)
        added = _diagonal(scatter / rest, self.variance, shrinkage, self.used)  # (chunk,)
        inverse = 1 / (within * self.eigenvalues.clamp_min(0) + added[:, None])  # (chunk, r)
        shift = self.one_hot[chunk, :, None] * (removed / self.others[chunk, None])[:, None]
        means = self.means - shift  # (chunk, classes, r)
        centred = self.points[chunk, None] - means / 2
        scaled = means * inverse[:, None]
        along_means = (scaled * removed[:, None]).sum(2)  # (chunk, classes)
        along_points = (centred * (inverse * removed)[:, None]).sum(2)
        remaining = 1 - within * growth * (inverse * removed.square()).sum(1)
        correction = (within * growth / remaining.clamp_min(1e-12))[:, None]
        logits: Tensor = (centred * scaled).sum(2) + correction * along_means * along_points
        return logits


def _coordinates(features: Tensor) -> Tensor:
    """Return coordinates (n, min(n, d)) of features (n, d) in a basis of their span."""
    if features.shape[0] >= features.shape[1]:
        return features
    eigenvalues, vectors = torch.linalg.eigh(features @ features.mT)
    coordinates: Tensor = vectors * eigenvalues.clamp_min(0).sqrt()
    return coordinates
