"""The readout of prototypical networks: the nearest class mean."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metalora._util.suggest import check_choice
from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.calibration import best_temperature
from metalora.learner.readouts.discriminant import class_prior, prior_without_self
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.rules import PrototypeRule
from metalora.learner.readouts.standardise import Centred, centre
from metalora.learner.readouts.targets import Targets
from metalora.learner.readouts.weights import share_scaling
from metalora.learner.readouts.without_item import SMALLEST_NORM, WithoutItem, without_each_item


class Prototype(Readout):
    """Cosines (or negative squared distances) to class means times a learned scale (Snell et al. 2017).

    Features are standardised and weighted by the share that the targets explain (`share_weights`), without a network.
    For cosines, a prototype is the mean of unit vectors. In use, the leave-one-out logits of an item are those of a fit
    that has not seen it: standardisation, weights and prototypes are those of the other items (`without_each_item`). In
    training, weights and standardisation stay.

    Args:
        balanced: Whether the logits leave out how often classes occur in the support set.
        distance: "cosine" or "euclidean".

    Example:
        >>> fitted = Prototype().fit(torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3))
        >>> fitted.logits(torch.randn(4, 5)).shape
        torch.Size([4, 3])
    """

    name: ClassVar[str] = "prototype"

    def __init__(self, *, balanced: bool = False, distance: Literal["cosine", "euclidean"] = "cosine"):
        super().__init__(balanced=balanced)
        check_choice("distance", distance, ("cosine", "euclidean"))
        self.distance = distance
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        centred = centre(support)
        scaling = share_scaling(centred, targets)
        features = centred.deviations * scaling.factor
        points = normalize(features, dim=1) if self.distance == "cosine" else features
        counts = targets.matrix.sum(0)
        prototypes = (targets.matrix.mT @ points) / counts[:, None]
        scale = self.log_scale.exp().to(features.dtype)
        prior = torch.zeros_like(counts) if self.balanced else class_prior(targets.matrix)
        rule = PrototypeRule(prototypes, scale, prior, self.distance)
        without_self = self._without_self(features, points, rule, targets.matrix)
        return self._fitted(scaling, features, rule, without_self, targets)

    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        fitted = self._fit_for_training(support, targets)
        rule = fitted.rule
        assert isinstance(rule, PrototypeRule)
        logits = prototype_logits_without_self(centre(support), targets, rule.scale, rule.distance)
        if not self.balanced:
            logits = logits + prior_without_self(targets.matrix)
        temperature = float(best_temperature(logits, targets, self._item_weights(targets)))
        rule = rule.divided(temperature)
        return replace(fitted, rule=rule, leave_one_out=logits / temperature, temperature=temperature)

    def _without_self(self, features: Tensor, points: Tensor, rule: PrototypeRule, one_hot: Tensor) -> Tensor:
        """Return the logits (n, classes) of each item with the prototype of its class without the item."""
        own_prototypes = one_hot @ rule.prototypes
        others = (one_hot @ one_hot.sum(0) - 1).clamp_min(1)
        reduced = own_prototypes - (points - own_prototypes) / others[:, None]  # (n, d)
        logits = rule.logits(features, features) - rule.offset
        if self.distance == "cosine":
            own = (normalize(features, dim=1) * normalize(reduced, dim=1)).sum(1) * rule.scale
        else:
            own = -(features - reduced).square().sum(1) * rule.scale
        logits = torch.where(one_hot > 0, own[:, None], logits)
        return logits if self.balanced else logits + prior_without_self(one_hot)


def prototype_logits_without_self(
    centred: Centred, targets: Targets, scale: Tensor, distance: str, kept: int | None = None
) -> Tensor:
    """Return the logits of each item, (n, classes), without the prior, by a fit that has not seen the item.

    Args:
        centred: The support set, in float64.
        targets: Its classes.
        scale: Scale of the logits, a scalar.
        distance: "cosine" or "euclidean".
        kept: How many features are kept, as a compact form does it; None: all.

    Example:
        >>> support, targets = torch.randn(6, 4).double(), Targets.classes(torch.arange(6) % 2, 2)
        >>> prototype_logits_without_self(centre(support), targets, torch.tensor(10.0), "cosine").shape
        torch.Size([6, 2])
    """
    parts = without_each_item(centred, targets)
    return torch.cat([scale * _likenesses(part, targets.matrix, distance, kept) for part in parts])


def _likenesses(part: WithoutItem, one_hot: Tensor, distance: str, kept: int | None) -> Tensor:
    """Return cosines, or minus squared distances, of left-out items and the prototypes of the others, (m, classes)."""
    norms = part.norms() if distance == "cosine" else None  # of all features: prototypes are narrowed, not made anew
    narrow = part if kept is None else part.only_largest(kept)
    own, prototypes = narrow.own(), narrow.class_means(one_hot, norms)
    if distance == "cosine":
        products = (prototypes @ normalize(own, dim=1)[:, :, None])[:, :, 0]
        cosines: Tensor = products / prototypes.norm(dim=2).clamp_min(SMALLEST_NORM)
        return cosines
    return -(own[:, None] - prototypes).square().sum(2)
