"""Standardised features, and how much of a feature the targets explain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from metalora.learner.readouts.projection import Projection
from metalora.learner.readouts.targets import Targets

SMALLEST_DEVIATION = 1e-3
SMALLEST_VARIANCE = 1e-20  # a feature below it is dead: its gradient would overflow in float32
ROUNDING = 1e-5  # share of the size of a feature by which the arithmetic of a network in float32 lets a constant vary


@dataclass(frozen=True)
class Scaling:
    """A shift and a factor for each feature that is used: z = (x - mean) * factor.

    Attributes:
        mean: Means of the features over the support set, (d',).
        factor: Factors, (d',); 0 for a feature that does not vary in the support set, which is thus ignored.
        width: Number d of features of an example.
        columns: The features that are used, int64 or, from a file, int32 (d',); None: all.
        projection: A projection of the scaled features to fewer dimensions, in a compact form.
    """

    mean: Tensor
    factor: Tensor
    width: int
    columns: Tensor | None = None
    projection: Projection | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return scaled features, (m, d') or as the projection gives them, of features (m, d)."""
        used = features if self.columns is None else features[:, self.columns]
        scaled = (used - self.mean) * self.factor
        return scaled if self.projection is None else self.projection.of_queries(scaled)

    def weighted(self, weights: Tensor) -> Scaling:
        """Return the scaling whose factors are multiplied with weights (d',)."""
        return replace(self, factor=self.factor * weights)

    def first(self, count: int, weight: float) -> Scaling:
        """Return the scaling of the first `count` features alone, with factors that are multiplied with a weight."""
        return self.only(torch.arange(count, device=self.mean.device)).weighted(self.factor.new_tensor(weight))

    def only(self, positions: Tensor) -> Scaling:
        """Return the scaling of some of its features, given their positions (d'',)."""
        columns = positions if self.columns is None else self.columns[positions]
        return Scaling(self.mean[positions], self.factor[positions], self.width, columns)

    def to(self, reference: Tensor) -> Scaling:
        """Return the scaling in the dtype and on the device of another tensor."""
        columns = None if self.columns is None else self.columns.to(reference.device)
        projection = None if self.projection is None else self.projection.to(reference)
        return Scaling(self.mean.to(reference), self.factor.to(reference), self.width, columns, projection)


class Centred(NamedTuple):
    """A support set without its mean.

    Attributes:
        mean: Means of the features, (d,).
        deviations: Features minus their mean, (n, d).
        variance: Mean squares of the deviations, (d,).
        is_used: Which features vary by more than rounding errors, (d,).
        size: Largest absolute value of each feature, (d,).
    """

    mean: Tensor
    deviations: Tensor
    variance: Tensor
    is_used: Tensor
    size: Tensor


def centre(support: Tensor) -> Centred:
    """Subtract the mean of the support set.

    Args:
        support: Features, (n, d).

    Example:
        >>> centre(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).is_used
        tensor([ True, False])
    """
    mean = support.mean(0)
    deviations = support - mean
    variance = deviations.square().mean(0)
    smallest, largest = support.detach().aminmax(dim=0)  # the mean of a constant may be off in its last bit
    size = torch.maximum(largest, -smallest)
    is_used = (largest > smallest) & varies_enough(variance, size)
    return Centred(mean, deviations, variance, is_used, size)


def varies_enough(variance: Tensor, size: Tensor) -> Tensor:
    """Return whether features of a variance (..., d) and largest absolute values (d,) vary by more than by rounding.

    The error of the mean of such a feature is as large as its deviations, and looks as if the targets explained it.
    """
    return (variance > SMALLEST_VARIANCE) & (variance > (ROUNDING * size).square())


def standardisation(centred: Centred) -> Scaling:
    """Return the scaling that gives the support set mean 0 and standard deviation 1.

    The factor is 1 / max(std, 1e-3 * min(1, largest std of all features)), so that a feature that hardly varies next
    to the others is not blown up. It can be differentiated with respect to the support set.

    Args:
        centred: The support set.

    Example:
        >>> scaling = standardisation(centre(torch.tensor([[1.0, 5.0], [3.0, 5.0]])))
        >>> scaling(torch.tensor([[5.0, 6.0]]))
        tensor([[3., 0.]])
    """
    return Scaling(centred.mean, standard_factors(centred.variance, centred.is_used), len(centred.variance))


def standard_factors(variance: Tensor, is_used: Tensor) -> Tensor:
    """Return the factors of `standardisation` for variances (..., d); 0 for features that are not used, (..., d)."""
    largest = torch.where(is_used, variance.detach(), torch.zeros_like(variance)).amax(-1, keepdim=True)
    floor = SMALLEST_DEVIATION**2 * largest.clamp_max(1.0)
    safe_variance = torch.where(is_used, torch.maximum(variance, floor), torch.ones_like(variance))
    return safe_variance.rsqrt() * is_used


class TargetBasis(NamedTuple):
    """A basis of what the targets can explain.

    Attributes:
        vectors: Orthonormal vectors whose span has the centred targets, (n, t').
        rank: Rank of the centred targets: the number of classes minus 1 for classes.
    """

    vectors: Tensor
    rank: int


def target_basis(targets: Targets) -> TargetBasis:
    """Return an orthonormal basis of the targets.

    For classes, these are the one-hot columns divided by the root of the number of items: their span has the constant
    vector too, to which centred features are orthogonal.

    Args:
        targets: The targets of n examples.

    Example:
        >>> target_basis(Targets.classes(torch.tensor([0, 1, 1]), 2)).rank
        1
    """
    if targets.kind == "classes":
        return TargetBasis(targets.matrix / targets.matrix.sum(0).sqrt(), targets.count - 1)
    directions, singular_values, _ = torch.linalg.svd(targets.centred().detach().double(), full_matrices=False)
    is_kept = singular_values > 1e-6 * singular_values.amax().clamp_min(1e-30)
    return TargetBasis(directions[:, is_kept].to(targets.matrix.dtype), int(is_kept.sum()))


def explained_share(centred: Centred, basis: TargetBasis) -> Tensor:
    """Return the share of the variance of each feature that a linear regression on the targets explains.

    s_j = |B^T f_j|^2 / |f_j|^2, with f_j the centred feature and B an orthonormal basis of the targets. It is the
    between-class share for classes, and R^2 for numbers. It can be differentiated.

    Args:
        centred: Features of n examples.
        basis: Basis of their targets.

    Returns:
        Shares, (d,), from 0 to 1; 0 for a feature that does not vary.

    Example:
        >>> basis = target_basis(Targets.classes(torch.tensor([0, 1]), 2))
        >>> explained_share(centre(torch.tensor([[1.0, 4.0], [2.0, 4.0]])), basis).round(decimals=4)
        tensor([1., 0.])
    """
    total = centred.variance * len(centred.deviations)
    safe_total = torch.where(centred.is_used, total, torch.ones_like(total))
    explained = (basis.vectors.mT @ centred.deviations).square().sum(0)
    return torch.where(centred.is_used, explained / safe_total, torch.zeros_like(total))
