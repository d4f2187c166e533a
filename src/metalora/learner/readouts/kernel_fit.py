"""Fit of a kernel rule for use: ridge, temperature and likelihood by leave-one-out, on all items or representatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metalora.learner.readouts.calibration import best_temperature, better_by_standard_error, log_likelihoods
from metalora.learner.readouts.discriminant import Decision, decision, item_weights
from metalora.learner.readouts.kernel import FeatureKernel, RidgeFit, ridge_path
from metalora.learner.readouts.left_out import left_out_logits
from metalora.learner.readouts.rules import KernelRule
from metalora.learner.readouts.targets import Targets

RIDGES_OF_NUMBERS = tuple(10 ** (exponent / 2) for exponent in range(-6, 2))  # 10^-3, 10^-2.5, ..., 10^0.5
RIDGES_OF_CLASSES = (0.1, 0.001, 0.01, 1.0)  # the first is taken unless another one is clearly better
MOST_LEFT_OUT = 256  # items that are left out of all that sees labels: the time grows with the square of their number
PARTS = 8  # of a support set that are left out of the weights of the features, one at a time
SMALLEST_EIGENVALUE = 1e-8  # share of the largest, below which a direction of the representatives is dropped


class KernelFit(NamedTuple):
    """A kernel rule and what leave-one-out says of it.

    Attributes:
        rule: The rule, with calibrated logits.
        leave_one_out: Its logits of each item without this item, (n, count).
        temperature: By what the logits of both are divided.
        likelihoods: Weighted log-likelihood of the target of each item under leave_one_out, (n,); the weights have the
            mean 1.
        ridge: The ridge of the regression.
    """

    rule: KernelRule
    leave_one_out: Tensor
    temperature: float
    likelihoods: Tensor
    ridge: float

    @property
    def likelihood(self) -> float:
        """The mean log-likelihood of the targets under leave_one_out."""
        return float(self.likelihoods.mean())

    def calibrated(self, held_out: Tensor, targets: Targets, balanced: bool, groups: Tensor | None = None) -> KernelFit:
        """Return the fit with the temperature that is best for logits of items that a fit did not see.

        Args:
            held_out: Logits of the items of the support set before calibration, (n, count). They become leave_one_out.
            targets: The targets of the support set.
            balanced: Whether all classes weigh the same in sum.
            groups: Group of each item, (n,), that was left out.
        """
        temperatures, likelihoods = _calibrated(held_out, targets, balanced, groups)
        temperature = float(temperatures)
        rule = self.rule.divided(temperature / self.temperature)
        return KernelFit(rule, held_out / temperature, temperature, likelihoods, self.ridge)


def fit_kernel_rule(
    values: Tensor,
    kernel: FeatureKernel,
    targets: Targets,
    balanced: bool,
    representatives: Tensor | None = None,
    groups: Tensor | None = None,
    ridges: tuple[float, ...] = (),
    quick_ridge: bool = False,
) -> KernelFit:
    """Fit a kernel rule to the kernel of a support set.

    For numbers, the ridge has the best leave-one-out likelihood, which is the smallest squared error. For classes and
    labels it is 0.1, unless the likelihood of another one is better by more than its standard error. (There the squared
    error of the scores is a poor judge: the discriminant and the temperature repair much of what it sees.)

    With m representatives the kernel is the Nystroem approximation K_nm K_mm^-1 K_mn, and the rule has coefficients of
    the representatives only.

    Args:
        values: Kernel of the support set, (n, n), in float64.
        kernel: The kernel that these values are from.
        targets: The targets of the support set.
        balanced: Whether the logits leave out how often classes occur.
        representatives: Positions of the representatives in the support set, (m,); None: all items.
        groups: Group of each item, (n,). The temperature and the likelihood are then those of items whose whole group
            was left out.
        ridges: The ridges to choose from; empty: those of the kind of the targets.
        quick_ridge: Choose the ridge of classes and labels by likelihoods for which the regressions of the other items
            have seen an item; then only the chosen fit leaves it out of everything.

    Example:
        >>> features = torch.randn(8, 3, dtype=torch.float64)
        >>> targets = Targets.classes(torch.arange(8) % 2, 2).to(features)
        >>> kernel = FeatureKernel()
        >>> fit = fit_kernel_rule(kernel(features, features), kernel, targets, False, torch.tensor([0, 1, 5]))
        >>> fit.rule.coefficients.shape
        torch.Size([3, 2])
    """
    is_numbers = targets.kind == "numbers"
    ridges = ridges or (RIDGES_OF_NUMBERS if is_numbers else RIDGES_OF_CLASSES)
    if representatives is None:
        path = ridge_path(values, targets.centred(), ridges)
        coefficients = path.coefficients
    else:
        approximation, projection = represented(values, representatives)
        path = ridge_path(approximation, targets.centred(), ridges)
        coefficients = projection.mT @ path.coefficients
    fit = decision(path.leave_one_out, targets, balanced)
    if quick_ridge and not is_numbers and len(ridges) > 1:
        _, likelihoods = _calibrated(fit.leave_one_out, targets, balanced, None)
        best = better_by_standard_error(list(likelihoods))
        only = slice(best, best + 1)
        ridges, coefficients = ridges[only], coefficients[only]
        path, fit = RidgeFit(*(tensor[only] for tensor in path)), Decision(*(tensor[only] for tensor in fit))
    if is_numbers:
        scores = path.leave_one_out if groups is None else path.leave_group_out(targets.centred(), groups)
        held_out = scores @ fit.slope + fit.offset[:, None]  # (ridges, n, count)
    elif groups is None and len(values) > MOST_LEFT_OUT:
        held_out = fit.leave_one_out
    else:
        held_out = left_out_logits(path.inverse, targets, balanced, groups)
    temperatures, likelihoods = _calibrated(held_out, targets, balanced, groups)
    best = int(likelihoods.mean(1).argmax()) if is_numbers else better_by_standard_error(list(likelihoods))
    temperature = float(temperatures[best])
    slope, offset = fit.slope[best] / temperature, fit.offset[best] / temperature
    rule = KernelRule(coefficients[best] @ slope, offset, kernel.frozen_width, kernel.frozen_scale)
    return KernelFit(rule, held_out[best] / temperature, temperature, likelihoods[best], ridges[best])


def represented(values: Tensor, representatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Nystroem approximation of a kernel, and the projection onto the representatives.

    Args:
        values: Kernel of the support set, (n, n).
        representatives: Their positions, (m,).

    Returns:
        K_nm K_mm^-1 K_mn (n, n), and K_nm K_mm^-1 (n, m).
    """
    to_chosen = values[:, representatives]  # (n, m)
    projection = to_chosen @ _inverse(to_chosen[representatives])
    return projection @ to_chosen.mT, projection


def _calibrated(held_out: Tensor, targets: Targets, balanced: bool, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the best temperatures of logits (..., n, count), and the log-likelihoods of the items with them.

    Args:
        held_out: Logits of items that a fit did not see, (..., n, count).
        targets: Their targets.
        balanced: Whether all classes weigh the same in sum.
        groups: Group of each item, (n,), that was left out.

    Returns:
        Temperatures (...), and weighted log-likelihoods (..., n); the weights have the mean 1.
    """
    weights = item_weights(targets, balanced, groups)
    temperatures = best_temperature(held_out, targets, weights)
    likelihoods = log_likelihoods(held_out / temperatures[..., None, None], targets)
    return temperatures, likelihoods * weights / weights.mean().clamp_min(1e-12)


def held_out_parts(features: Tensor, targets: Targets, groups: Tensor | None, count: int) -> Iterator[Tensor]:
    """Yield which items, (n,), each part of a support set has; the order of the items and of the classes has no effect.

    The items of each class, or its groups, are sorted by their size and dealt out in turn. A class that is one item or
    one group is in no part.

    Args:
        features: Standardised features, (n, d).
        targets: The targets of the support set.
        groups: Group of each item, (n,), all of which is in one part.
        count: Number of parts, if no class has fewer items.

    Example:
        >>> targets = Targets.classes(torch.tensor([0, 0, 1, 0, 1, 2]), 3)
        >>> [part.nonzero()[:, 0].tolist() for part in held_out_parts(torch.arange(6.0)[:, None], targets, None, 2)]
        [[0, 2, 3], [1, 4]]
    """
    unit_of = torch.arange(len(features), device=features.device)
    if groups is not None:
        unit_of = torch.unique(groups, return_inverse=True)[1]
    units = int(unit_of.max()) + 1
    sizes = features.new_zeros(units, dtype=torch.float64).index_add(0, unit_of, features.double().square().sum(1))
    class_of = torch.zeros_like(sizes, dtype=torch.int64)
    if targets.kind == "classes":
        counts = targets.matrix.new_zeros(units, targets.count).index_add(0, unit_of, targets.matrix)
        class_of = counts.argmax(1)
    order = sizes.argsort(stable=True)
    order = order[class_of[order].argsort(stable=True)]
    in_class = torch.bincount(class_of)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(units, device=order.device) - (in_class.cumsum(0) - in_class)[class_of[order]]
    part = torch.where(in_class[class_of] > 1, rank % count, -1)[unit_of]
    for number in range(int(part.max()) + 1):
        is_held_out = part == number
        left = targets.matrix[~is_held_out]
        if len(left) > 1 and (targets.kind != "classes" or bool(left.any(0).all())):
            yield is_held_out


def folds_of(targets: Targets, count: int) -> Tensor:
    """Return the fold of each item, (n,): the items of a class are spread evenly; -1 for the single item of a class.

    Args:
        targets: The targets of the support set.
        count: Number of folds, at least 2.

    Example:
        >>> folds_of(Targets.classes(torch.tensor([0, 0, 1, 0, 1, 2]), 3), count=2)
        tensor([ 0,  1,  0,  0,  1, -1])
    """
    if targets.kind != "classes":
        return torch.arange(len(targets.matrix), device=targets.matrix.device) % count
    rank_in_class = (targets.matrix.cumsum(0) * targets.matrix).sum(1).long() - 1
    own_count = targets.matrix @ targets.matrix.sum(0)
    return torch.where(own_count > 1, rank_in_class % count, -1)


def group_folds(groups: Tensor, count: int) -> Tensor:
    """Return the fold of each item, (n,): a group is in one fold.

    Args:
        groups: Group of each item, (n,).
        count: Number of folds.

    Example:
        >>> group_folds(torch.tensor([7, 7, 3, 9]), count=2)
        tensor([1, 1, 0, 0])
    """
    numbers: Tensor = torch.unique(groups, return_inverse=True)[1]
    return numbers % count


def _inverse(kernel: Tensor) -> Tensor:
    """Return the pseudo-inverse of a positive semi-definite matrix, (m, m)."""
    eigenvalues, vectors = torch.linalg.eigh(kernel)
    is_kept = eigenvalues > SMALLEST_EIGENVALUE * eigenvalues.amax()
    inverse = torch.where(is_kept, 1 / eigenvalues.where(is_kept, torch.ones_like(eigenvalues)), 0.0)
    pseudo_inverse: Tensor = (vectors * inverse) @ vectors.mT
    return pseudo_inverse
