"""The temperature of a compact readout, which leaves out features: by fits and choices that have not seen an item."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metalora.learner.readouts.calibration import best_temperature
from metalora.learner.readouts.discriminant import class_prior, item_weights, prior_without_self
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.kernel import FeatureKernel, pivots, ridge_inverse
from metalora.learner.readouts.kernel_fit import MOST_LEFT_OUT, PARTS, held_out_parts, represented
from metalora.learner.readouts.knn import votes_without_self
from metalora.learner.readouts.left_out import left_out_logits
from metalora.learner.readouts.prototype import prototype_logits_without_self
from metalora.learner.readouts.rules import KernelRule, NeighbourRule, PrototypeRule
from metalora.learner.readouts.standardise import Centred, centre, explained_share, standard_factors, target_basis
from metalora.learner.readouts.weights import normalised
from metalora.learner.readouts.without_item import without_each_item


def recalibrated(
    compact: FittedReadout, full: FittedReadout, kept: int, temperature: float | None, ridge: float | None
) -> FittedReadout:
    """Return a compact readout with the temperature and the logits of items that it has not seen.

    The weights of the features and the choice of those that are kept see the labels. The fewer are kept, the better
    they fit the support set by chance, so that the temperature of the full readout is too small. For prototypes and
    neighbours, both are made anew without each item; for a kernel rule of up to 256 items, without each of eight parts.
    A linear rule has even weights and stays.

    Args:
        compact: The compact readout.
        full: The readout that it is of, with the weighted features of the whole support set, (n, d), in float64.
        kept: How many of its features are kept.
        temperature: What the logits of the compact readout were divided by; None: not known, after reading from a file.
        ridge: The ridge of its kernel rule; None without one.
    """
    rule, is_narrow = compact.rule, kept < len(full.scaling.mean)
    centred = centre(torch.where(full.scaling.factor > 0, full.support / full.scaling.factor, 0.0))
    groups, before = None, 1.0  # logits of prototypes and of votes are those of the rule, which has a temperature
    if isinstance(rule, PrototypeRule) and is_narrow:
        logits = _of_prototypes(full, rule, centred, kept)
    elif isinstance(rule, NeighbourRule) and is_narrow:
        logits = _of_neighbours(full, rule, centred, kept)
    elif isinstance(rule, KernelRule) and _can_leave_out(full) and temperature is not None and ridge is not None:
        groups, before = full.groups, temperature
        logits = _of_kernel(compact, full, centred, kept, ridge)
    else:
        return compact
    weights = item_weights(full.targets, full.balanced, groups)
    best = float(best_temperature(logits, full.targets, weights))
    whole = None if temperature is None else temperature * best / before
    return replace(compact, rule=rule.divided(best / before), leave_one_out=logits / best, temperature=whole)


def _can_leave_out(full: FittedReadout) -> bool:
    """Return True for classes of so few items that each can be left out of all that sees labels."""
    return full.targets.kind == "classes" and len(full.support) <= MOST_LEFT_OUT


def _of_prototypes(full: FittedReadout, rule: PrototypeRule, centred: Centred, kept: int) -> Tensor:
    """Return the logits of each item, (n, classes), by prototypes that have not seen the item."""
    one_hot, prior = full.targets.matrix, class_prior(full.targets.matrix)
    logits = prototype_logits_without_self(centred, full.targets, rule.scale.double(), rule.distance, kept)
    share = (rule.offset.double() @ prior) / (prior @ prior)  # of the prior in the logits: 1 / temperature, or 0
    return logits + share * prior_without_self(one_hot)


def _of_neighbours(full: FittedReadout, rule: NeighbourRule, centred: Centred, kept: int) -> Tensor:
    """Return the logits of each item, (n, classes), by the votes of the others with their weights."""
    parts = without_each_item(centred, full.targets)
    cosines = torch.cat([part.only_largest(kept).cosines() for part in parts])
    return votes_without_self(cosines, rule.to(full.support), full.balanced)


def _of_kernel(compact: FittedReadout, full: FittedReadout, centred: Centred, kept: int, ridge: float) -> Tensor:
    """Return the logits of each item, (n, classes), with features that the other parts of the support set choose."""
    standard = centred.deviations * standard_factors(centred.variance, centred.is_used)
    logits = full.leave_one_out.clone()
    for is_held_out in held_out_parts(standard, full.targets, full.groups, PARTS):
        weights = _weights_of_others(full, centred, ~is_held_out)
        columns = (standard * weights).square().sum(0).topk(kept).indices
        features = standard[:, columns] * normalised(weights[columns], centred.is_used[columns])
        values = FeatureKernel()(features, features)
        if len(compact.support) < len(features):
            values, _ = represented(values, pivots(values, len(compact.support)))
        inverse = ridge_inverse(values, ridge)
        logits[is_held_out] = left_out_logits(inverse, full.targets, full.balanced, full.groups, is_held_out)
    return logits


def _weights_of_others(full: FittedReadout, centred: Centred, is_seen: Tensor) -> Tensor:
    """Return the weights of the features, (d,), that some of the items give.

    The weight of a feature is a function of the share of its variance that the classes explain. The weights and shares
    of the whole support set give this function.
    """
    weights = full.scaling.factor / standard_factors(centred.variance, centred.is_used).clamp_min(1e-30)
    share = explained_share(centred, target_basis(full.targets))
    order = share.argsort()
    of_seen = explained_share(centre(centred.deviations[is_seen]), target_basis(full.targets.of(is_seen)))
    position = torch.searchsorted(share[order], of_seen).clamp_max(len(order) - 1)
    return weights[order][position] * centred.is_used
