"""The default readout: kernel ridge regression on weighted features, then a discriminant of its scores."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.discriminant import decision
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.kernel import FeatureKernel, fit_ridge, linear_and_rbf
from metalora.learner.readouts.kernel_fit import fit_kernel_rule
from metalora.learner.readouts.rules import KernelRule
from metalora.learner.readouts.standardise import (
    Centred,
    Scaling,
    centre,
    explained_share,
    standardisation,
    target_basis,
)
from metalora.learner.readouts.targets import TargetKind, Targets
from metalora.learner.readouts.weights import ShareWeights, normalised

SMALLEST_RIDGE = 1e-4  # below it, float32 cannot factorise the kernel of duplicate items


class KernelRidge(Readout):
    """Kernel ridge regression on standardised features, each weighted by how much of it the targets explain.

    1. Features are standardised (`standardisation`) and weighted (`ShareWeights`).
    2. Kernel ridge regression (`linear_and_rbf`, `fit_ridge`) on the centred targets gives leave-one-out scores.
    3. A Gaussian discriminant of these scores gives logits (`class_discriminant`); numbers are the scores themselves.

    In training, the ridge is learned. In use, the ridge has the smallest leave-one-out squared error, the logits are
    divided by the temperature of the best leave-one-out likelihood, and this likelihood chooses between the kernel of
    all features, that of the frozen features and their mean.

    Args:
        balanced: Whether the logits leave out how often classes occur in the support set.

    Example:
        >>> readout = KernelRidge()
        >>> support = torch.randn(12, 5, requires_grad=True)
        >>> fitted = readout.fit(support, Targets.classes(torch.arange(12) % 3, 3))
        >>> readout.loss(fitted.logits(torch.randn(6, 5)), torch.arange(6) % 3).backward()
        >>> support.grad.shape
        torch.Size([12, 5])
    """

    name: ClassVar[str] = "kernel-ridge"
    kinds: ClassVar[tuple[TargetKind, ...]] = ("classes", "numbers", "multilabel")

    def __init__(self, *, balanced: bool = False):
        super().__init__(balanced=balanced)
        self.log_ridge = nn.Parameter(torch.tensor(0.1).log())
        self.weights = ShareWeights()

    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        centred = centre(support)
        scaling, _ = self._weighting(centred, targets)
        features = centred.deviations * scaling.factor
        ridge = self.log_ridge.exp().clamp_min(SMALLEST_RIDGE).to(features.dtype)
        fit = fit_ridge(linear_and_rbf(features, features), targets.centred(), ridge)
        to_logits = decision(fit.leave_one_out, targets, self.balanced)
        rule = KernelRule(fit.coefficients @ to_logits.slope, to_logits.offset)
        return self._fitted(scaling, features, rule, to_logits.leave_one_out, targets)

    def _fit_for_use(self, support: Tensor, targets: Targets, frozen_width: int) -> FittedReadout:
        scaling, weights = self._weighting(centre(support), targets)
        features = scaling(support)
        of_all = linear_and_rbf(features, features)
        best = fit_kernel_rule(of_all, FeatureKernel(), targets, self.balanced)
        best_scaling = scaling
        frozen_norm = float(weights[:frozen_width].square().sum().sqrt())
        if 0 < frozen_width < support.shape[1] and frozen_norm > 0:
            frozen_scaling = scaling.first(frozen_width, 1 / frozen_norm)
            frozen_features = frozen_scaling(support)
            of_frozen = linear_and_rbf(frozen_features, frozen_features)
            both = FeatureKernel(frozen_width, 1 / frozen_norm)
            from_both = fit_kernel_rule((of_all + of_frozen) / 2, both, targets, self.balanced)
            from_frozen = fit_kernel_rule(of_frozen, FeatureKernel(), targets, self.balanced)
            for candidate, candidate_scaling in ((from_both, scaling), (from_frozen, frozen_scaling)):
                if candidate.likelihood > best.likelihood:
                    best, best_scaling = candidate, candidate_scaling
        return self._fitted(best_scaling, best_scaling(support), best.rule, best.leave_one_out, targets)

    def _weighting(self, centred: Centred, targets: Targets) -> tuple[Scaling, Tensor]:
        """Return the scaling that standardises and weights the features, and their weights, (d,)."""
        basis = target_basis(targets)
        share = explained_share(centred, basis)
        weights = self.weights(share, len(centred.deviations), max(basis.rank, 1))
        weights = normalised(weights, centred.is_used)
        return standardisation(centred).weighted(weights), weights
