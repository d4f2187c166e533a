"""The default readout: kernel ridge regression on weighted features, then a discriminant of its scores."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.calibration import better_by_standard_error
from metalora.learner.readouts.discriminant import decision
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.kernel import (
    FeatureKernel,
    distances_of_products,
    fit_ridge,
    kernel_of_products,
    linear_and_rbf,
    ridge_inverse,
)
from metalora.learner.readouts.kernel_fit import (
    MOST_LEFT_OUT,
    PARTS,
    KernelFit,
    fit_kernel_rule,
    folds_of,
    group_folds,
    held_out_parts,
)
from metalora.learner.readouts.left_out import left_out_logits
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


class _Candidate(NamedTuple):
    """A fit in use.

    Attributes:
        scaling: Scaling of its features.
        features: Weighted features of the support set, (n, d').
        products: Their inner products, (n, n), in float64.
        fit: The fit.
    """

    scaling: Scaling
    features: Tensor
    products: Tensor
    fit: KernelFit


class KernelRidge(Readout):
    """Kernel ridge regression on standardised features, each weighted by how much of it the targets explain.

    1. Features are standardised (`standardisation`) and weighted (`ShareWeights`).
    2. Kernel ridge regression (`linear_and_rbf`, `fit_ridge`) on the centred targets gives leave-one-out scores.
    3. A Gaussian discriminant of these scores gives logits (`class_discriminant`); numbers are the scores themselves.

    In training, the ridge is learned. In use, `fit_kernel_rule` chooses the ridge by leave-one-out. The kernel is that
    of all features, unless the likelihood of the kernel of the frozen features, or of the mean of both, is better by
    more than its standard error. A temperature divides the logits so that their probabilities fit. For classes and
    labels, this likelihood and the temperature are those of logits that leave an item out of everything that sees
    labels: of the regression and of the discriminant in closed form (`left_out_logits`), and of the weights of the
    features together with the other items of its part, one of eight (`held_out_parts`). A support set of more than 256
    items hides too little to be worth the time: there they leave an item out of the regression and of the discriminant,
    one at a time.

    With `folds`, they come from complete fits without the items of each fold, which takes as many times as long.

    Args:
        balanced: Whether the logits leave out how often classes occur in the support set.
        folds: Number of folds, at least 2; 0: as above, which does not depend on the order of the items.

    Raises:
        ValueError: The number of folds is 1 or negative.

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
    features_in_float64: ClassVar[bool] = False

    def __init__(self, *, balanced: bool = False, folds: int = 0):
        super().__init__(balanced=balanced)
        if folds == 1 or folds < 0:
            raise ValueError(f"folds must be 0 (leave-one-out) or at least 2, not {folds}")
        self.folds = folds
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

    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        candidates = self._candidates(support, targets, frozen_width, groups)
        if self.folds:
            candidates = self._judged_by_folds(candidates, support, targets, frozen_width, groups)
        elif targets.kind != "numbers" and len(support) <= MOST_LEFT_OUT:
            candidates = self._judged_by_others(candidates, support, targets, frozen_width, groups)
        best = candidates[better_by_standard_error([candidate.fit.likelihoods for candidate in candidates])]
        distances = distances_of_products(best.products).fill_diagonal_(torch.inf)
        nearest = distances.amin(1).sqrt()
        fit = best.fit
        return self._fitted(
            best.scaling, best.features, fit.rule, fit.leave_one_out, targets, nearest, groups, fit.temperature
        )

    def _candidates(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> list[_Candidate]:
        """Return the fits with the kernel of all features, the mean of both kernels and the one of frozen features."""
        centred = centre(support)
        scaling, weights = self._weighting(centred, targets)
        features = centred.deviations * scaling.factor
        frozen, adapted = features[:, :frozen_width], features[:, frozen_width:]
        # The large products are in the precision of the features, everything of the size of the support set in float64.
        frozen_products = (frozen @ frozen.mT).double()
        products = frozen_products + (adapted @ adapted.mT).double()
        of_all = kernel_of_products(products)
        has_two_kernels = 0 < frozen_width < support.shape[1]
        fit = fit_kernel_rule(of_all, FeatureKernel(), targets, self.balanced, groups=groups)
        candidates = [_Candidate(scaling, features, products, fit)]
        frozen_norm = float(weights[:frozen_width].square().sum().sqrt())
        if has_two_kernels and frozen_norm > 0:
            frozen_scaling = scaling.first(frozen_width, 1 / frozen_norm)
            frozen_products = frozen_products / frozen_norm**2
            of_frozen = kernel_of_products(frozen_products)
            both = FeatureKernel(frozen_width, 1 / frozen_norm)
            mean = (of_all + of_frozen) / 2
            ridges = (fit.ridge,)  # one choice of the ridge is enough, and fast
            from_both = fit_kernel_rule(mean, both, targets, self.balanced, groups=groups, ridges=ridges)
            from_frozen = fit_kernel_rule(
                of_frozen, FeatureKernel(), targets, self.balanced, groups=groups, ridges=ridges
            )
            candidates += [
                _Candidate(scaling, features, products, from_both),
                _Candidate(frozen_scaling, frozen / frozen_norm, frozen_products, from_frozen),
            ]
        return candidates

    def _judged_by_others(
        self, candidates: list[_Candidate], support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> list[_Candidate]:
        """Return the candidates with temperatures and likelihoods by weights that have not seen an item and some more.

        The regression and the discriminant leave out the item (or its group) alone. For each part of the support set
        the kernel is computed anew, with the weights that the other parts give.
        """
        centred = centre(support)
        standard = standardisation(centred)(support)
        held_out = torch.stack([fit.leave_one_out * fit.temperature for *_, fit in candidates])
        ridge = candidates[0].fit.ridge  # all candidates have one
        for is_held_out in held_out_parts(standard, targets, groups, PARTS):
            _, weights = self._weighting(centre(support[~is_held_out]), targets.of(~is_held_out))
            kernels = _kernels(standard, normalised(weights, centred.is_used), frozen_width)[: len(candidates)]
            inverse = ridge_inverse(kernels, ridge)
            held_out[:, is_held_out] = left_out_logits(inverse, targets, self.balanced, groups, is_held_out)
        return [
            candidate._replace(fit=candidate.fit.calibrated(logits, targets, self.balanced, groups))
            for candidate, logits in zip(candidates, held_out, strict=True)
        ]

    def _judged_by_folds(
        self,
        candidates: list[_Candidate],
        support: Tensor,
        targets: Targets,
        frozen_width: int,
        groups: Tensor | None,
    ) -> list[_Candidate]:
        """Return the candidates with temperatures and likelihoods from fits that did not see the items of a fold."""
        held_out = [fit.leave_one_out * fit.temperature for *_, fit in candidates]
        fold = folds_of(targets, self.folds) if groups is None else group_folds(groups, self.folds)
        for number in range(self.folds):
            is_held_out = fold == number
            seen = support[~is_held_out]
            if len(seen) < 2 or len(seen) == len(support):
                continue
            of_seen = None if groups is None else groups[~is_held_out]
            fold_candidates = self._candidates(seen, targets.of(~is_held_out), frozen_width, of_seen)
            # a fold has fewer candidates if its frozen features are constant: the closed form then stays
            for logits, (scaling, features, _, fit) in zip(held_out, fold_candidates, strict=False):
                queries = scaling(support[is_held_out]).double()
                logits[is_held_out] = fit.rule.logits(queries, features.double()) * fit.temperature
        return [
            candidate._replace(fit=candidate.fit.calibrated(logits, targets, self.balanced, groups))
            for candidate, logits in zip(candidates, held_out, strict=True)
        ]

    def _weighting(self, centred: Centred, targets: Targets) -> tuple[Scaling, Tensor]:
        """Return the scaling that standardises and weights the features, and their weights, (d,)."""
        basis = target_basis(targets.to(centred.deviations))
        share = explained_share(centred, basis)
        weights = self.weights(share, len(centred.deviations), max(basis.rank, 1))
        weights = normalised(weights, centred.is_used)
        return standardisation(centred).weighted(weights), weights


def _kernels(standard: Tensor, weights: Tensor, frozen_width: int) -> Tensor:
    """Return kernels (3, n, n) of standardised features (n, d) with weights (d,): of all, the mean, of the frozen."""
    features = standard * weights
    frozen, adapted = features[:, :frozen_width], features[:, frozen_width:]
    frozen_products = (frozen @ frozen.mT).double()
    of_all = kernel_of_products(frozen_products + (adapted @ adapted.mT).double())
    of_frozen = kernel_of_products(frozen_products / weights[:frozen_width].square().sum().clamp_min(1e-30))
    return torch.stack([of_all, (of_all + of_frozen) / 2, of_frozen])
