"""Fit of a kernel rule for use: ridge, temperature and likelihood by leave-one-out, on all items or representatives."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from metalora.learner.readouts.calibration import best_temperature, mean_log_likelihood
from metalora.learner.readouts.discriminant import decision, item_weights, logits_without_group
from metalora.learner.readouts.kernel import FeatureKernel, choose_ridge
from metalora.learner.readouts.rules import KernelRule
from metalora.learner.readouts.targets import Targets

SMALLEST_EIGENVALUE = 1e-8  # share of the largest, below which a direction of the representatives is dropped


class KernelFit(NamedTuple):
    """A kernel rule and what leave-one-out says of it.

    Attributes:
        rule: The rule, with calibrated logits.
        leave_one_out: Its logits of each item without this item, (n, count).
        temperature: By what the logits of both are divided.
        likelihood: Mean log-likelihood of the targets under leave_one_out.
    """

    rule: KernelRule
    leave_one_out: Tensor
    temperature: float
    likelihood: float

    def calibrated(self, held_out: Tensor, targets: Targets, balanced: bool, groups: Tensor | None = None) -> KernelFit:
        """Return the fit with the temperature that is best for logits of items that a fit did not see.

        Args:
            held_out: Logits of the items of the support set before calibration, (n, count). They become leave_one_out.
            targets: The targets of the support set.
            balanced: Whether all classes weigh the same in sum.
            groups: Group of each item, (n,), that was left out.
        """
        weights = item_weights(targets, balanced, groups)
        temperature = best_temperature(held_out, targets, weights)
        ratio = self.temperature / temperature
        rule = replace(self.rule, coefficients=self.rule.coefficients * ratio, offset=self.rule.offset * ratio)
        likelihood = float(mean_log_likelihood(held_out / temperature, targets, weights))
        return KernelFit(rule, held_out / temperature, temperature, likelihood)


def fit_kernel_rule(
    values: Tensor,
    kernel: FeatureKernel,
    targets: Targets,
    balanced: bool,
    representatives: Tensor | None = None,
    groups: Tensor | None = None,
) -> KernelFit:
    """Fit a kernel rule to the kernel of a support set.

    With m representatives the kernel is the Nystroem approximation K_nm K_mm^-1 K_mn, and the rule has coefficients of
    the representatives only.

    Args:
        values: Kernel of the support set, (n, n), in float64.
        kernel: The kernel that these values are from.
        targets: The targets of the support set.
        balanced: Whether the logits leave out how often classes occur.
        representatives: Positions of the representatives in the support set, (m,); None: all items.
        groups: Group of each item, (n,). The temperature and the likelihood are then those of items whose whole group
            was left out; ridge and discriminant stay, since classes of few groups would have too few items left.

    Example:
        >>> features = torch.randn(8, 3, dtype=torch.float64)
        >>> targets = Targets.classes(torch.arange(8) % 2, 2).to(features)
        >>> kernel = FeatureKernel()
        >>> fit = fit_kernel_rule(kernel(features, features), kernel, targets, False, torch.tensor([0, 1, 5]))
        >>> fit.rule.coefficients.shape
        torch.Size([3, 2])
    """
    if representatives is None:
        ridge_fit = choose_ridge(values, targets.centred(), groups=groups)
        coefficients = ridge_fit.coefficients
    else:
        to_chosen = values[:, representatives]  # (n, m)
        projection = to_chosen @ _inverse(to_chosen[representatives])  # (n, m)
        ridge_fit = choose_ridge(projection @ to_chosen.mT, targets.centred(), groups=groups)
        coefficients = projection.mT @ ridge_fit.coefficients
    fit = decision(ridge_fit.leave_one_out, targets, balanced)
    held_out = fit.leave_one_out
    if groups is not None and ridge_fit.leave_group_out is not None:
        scores = ridge_fit.leave_one_out, ridge_fit.leave_group_out
        held_out = logits_without_group(*scores, targets, balanced, groups)
    rule = KernelRule(coefficients @ fit.slope, fit.offset, kernel.frozen_width, kernel.frozen_scale)
    return KernelFit(rule, held_out, 1.0, 0.0).calibrated(held_out, targets, balanced, groups)


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
