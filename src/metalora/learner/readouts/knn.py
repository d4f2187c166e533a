"""The readout of matching networks: a soft vote of the neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.calibration import best_temperature, mean_log_likelihood
from metalora.learner.readouts.discriminant import class_prior, prior_without_self
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.rules import NeighbourRule, cosines
from metalora.learner.readouts.standardise import centre
from metalora.learner.readouts.targets import Targets
from metalora.learner.readouts.weights import share_scaling
from metalora.learner.readouts.without_item import without_each_item

SCALES = (0.5, 1.0, 2.0, 4.0)  # factors of the learned scale that are tried in use


class SoftNeighbours(Readout):
    """A vote of all items with weights exp(scale * cosine) (Vinyals et al. 2016), as in `matching_loss`.

    Features are standardised and weighted by the share that the targets explain (`share_weights`), without a network.
    The scale is learned, and in use the best of four multiples of it by the leave-one-out likelihood. The leave-one-out
    logits are votes of the other items, in use with their standardisation and weights (`without_each_item`); in
    training, weights and standardisation stay.

    Args:
        balanced: Whether the vote of a class is divided by how often it occurs in the support set.

    Example:
        >>> fitted = SoftNeighbours().fit(torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3))
        >>> fitted.logits(torch.randn(4, 5)).shape
        torch.Size([4, 3])
    """

    name: ClassVar[str] = "knn"

    def __init__(self, *, balanced: bool = False):
        super().__init__(balanced=balanced)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        centred = centre(support)
        scaling = share_scaling(centred, targets)
        features = centred.deviations * scaling.factor
        rule = self._rule(targets, self.log_scale.exp().to(features.dtype))
        similarities = cosines(features, features)
        return self._fitted(scaling, features, rule, votes_without_self(similarities, rule, self.balanced), targets)

    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        fitted = self._fit_for_training(support, targets)
        weights = self._item_weights(targets)
        similarities = torch.cat([part.cosines() for part in without_each_item(centre(support), targets)])
        best_likelihood = -float("inf")
        for factor in SCALES:
            rule = self._rule(targets, factor * self.log_scale.exp().to(support.dtype))
            logits = votes_without_self(similarities, rule, self.balanced)
            temperature = float(best_temperature(logits, targets, weights))
            likelihood = float(mean_log_likelihood(logits / temperature, targets, weights))
            if likelihood > best_likelihood:
                best_likelihood = likelihood
                leave_one_out, rule = logits / temperature, rule.divided(temperature)
                fitted = replace(fitted, rule=rule, leave_one_out=leave_one_out, temperature=temperature)
        return fitted

    def _rule(self, targets: Targets, scale: Tensor) -> NeighbourRule:
        """Return the rule with a scale and the temperature 1."""
        one_hot = targets.matrix
        prior = -class_prior(one_hot) if self.balanced else torch.zeros_like(one_hot[0])
        return NeighbourRule(one_hot, scale, prior, torch.ones_like(scale))


def votes_without_self(similarities: Tensor, rule: NeighbourRule, balanced: bool) -> Tensor:
    """Return the logits of each item by the votes of the other items.

    Args:
        similarities: Cosines of the items, (n, n).
        rule: The rule; its prior is made anew without the item.
        balanced: Whether the vote of a class is divided by how often it occurs.

    Returns:
        Logits, (n, classes).

    Example:
        >>> rule = NeighbourRule(torch.eye(2).repeat(3, 1), torch.tensor(10.0), torch.zeros(2), torch.tensor(1.0))
        >>> votes_without_self(torch.eye(6), rule, balanced=False).shape
        torch.Size([6, 2])
    """
    if balanced:
        rule = replace(rule, prior=-prior_without_self(rule.membership))
    is_self = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    return rule.vote((rule.scale * similarities).masked_fill(is_self, -torch.inf))
