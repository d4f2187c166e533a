"""From ridge scores to logits: a Gaussian discriminant in the space of the scores.

A one-against-rest regression gives a class between two others a flat score (masking). A linear discriminant that is
fitted on the leave-one-out scores of the support set undoes this. Shapes: n items, t scores, c classes; "..." are axes
of several fits, such as one for each ridge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalora.learner.readouts.targets import Targets

SHRINKAGE = 0.1  # of the mean variance
SMALLEST_VARIANCE = 1e-4  # of scores whose targets are 0 and 1: all classes may have a single item
NUMBERS_AT_ONCE = 20_000_000


class Decision(NamedTuple):
    """An affine map from scores to logits, logits = scores @ slope + offset.

    Attributes:
        slope: Slopes, (..., t, count).
        offset: Offsets, (..., count).
        leave_one_out: Logits of each item of the support set without this item, (..., n, count).
    """

    slope: Tensor
    offset: Tensor
    leave_one_out: Tensor


def decision(scores: Tensor, targets: Targets, balanced: bool) -> Decision:
    """Return the map from scores to logits (classes, labels) or to predictions (numbers).

    Args:
        scores: Leave-one-out scores of the support set, (..., n, t).
        targets: The targets of the support set.
        balanced: Whether to leave out how often classes (or labels) occur.

    Example:
        >>> scores = torch.tensor([[0.4, -0.4], [0.2, -0.2], [-0.3, 0.3], [-0.1, 0.1]])
        >>> targets = Targets.classes(torch.tensor([0, 0, 1, 1]), count=2)
        >>> decision(scores, targets, balanced=False).slope.shape
        torch.Size([2, 2])
    """
    if targets.kind == "classes":
        return class_discriminant(scores, targets.matrix, balanced)
    if targets.kind == "multilabel":
        return label_discriminants(scores, targets.matrix, balanced)
    mean, deviation = targets.matrix.mean(0), targets.deviation()
    fits = scores.shape[:-2]
    return Decision(torch.diag(deviation).expand(*fits, -1, -1), mean.expand(*fits, -1), scores * deviation + mean)


def class_discriminant(scores: Tensor, one_hot: Tensor, balanced: bool = False) -> Decision:
    """Fit a linear discriminant analysis with a shrunk pooled covariance.

    logit_k = q W^-1 m_k - m_k^T W^-1 m_k / 2 + log(n_k / n), with the class means m_k and
    W = within-class scatter / (n - c) + (0.1 * its mean variance + 1e-4) I. The leave-one-out logits are those of a new
    discriminant without the item, in closed form: its class mean, the scatter (a rank-one downdate), the shrinkage and
    the class frequencies change. The scores of the other items stay, as do their standardisation and weights.

    Args:
        scores: Scores, (..., n, t).
        one_hot: Classes of the items, one-hot, (n, c).
        balanced: Whether to leave out the term log(n_k / n).

    Example:
        >>> scores = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
        >>> fit = class_discriminant(scores, torch.eye(2).repeat_interleave(2, 0))
        >>> (torch.tensor([[1.5]]) @ fit.slope + fit.offset).argmax(1)
        tensor([0])
    """
    items, classes = one_hot.shape
    counts = one_hot.sum(0)
    means = one_hot.mT @ scores / counts[:, None]  # (..., c, t)
    deviations = scores - one_hot @ means  # (..., n, t)
    scatter = deviations.mT @ deviations  # (..., t, t)
    slope, offset = gaussian(means, shrunk(scatter, items - classes))
    prior = class_prior(one_hot)
    logits = _class_logits_without_self(scores, one_hot, means, deviations, scatter, balanced)
    return Decision(slope, offset if balanced else offset + prior, logits)


def gaussian(means: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope (..., t, c) and offset (..., c) for means (..., c, t) and a covariance (..., t, t)."""
    slope = torch.linalg.solve(covariance, means.mT)
    return slope, -(means * slope.mT).sum(-1) / 2


def shrunk(scatter: Tensor, degrees_of_freedom: int) -> Tensor:
    """Return the shrunk covariance, (..., t, t), of a within-class scatter, (..., t, t)."""
    covariance = scatter / max(degrees_of_freedom, 1)
    size = covariance.shape[-1]
    identity = torch.eye(size, dtype=scatter.dtype, device=scatter.device)
    mean_variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(0)
    return covariance + (SHRINKAGE * mean_variance + SMALLEST_VARIANCE)[..., None, None] * identity


def _class_logits_without_self(
    scores: Tensor, one_hot: Tensor, means: Tensor, deviations: Tensor, scatter: Tensor, balanced: bool
) -> Tensor:
    """Return the logits (..., n, c) of each item by the discriminant of the other items; see `class_discriminant`."""
    items, classes = one_hot.shape
    counts = one_hot.sum(0)
    own_count = one_hot @ counts  # (n,)
    others = (own_count - 1).clamp_min(1)  # the mean of a class of one item stays
    logits = []
    at_once = max(1, NUMBERS_AT_ONCE * items // max(scores.numel() * scores.shape[-1], 1))
    for chunk in torch.split(torch.arange(items, device=scores.device), at_once):
        step = deviations[..., chunk, :]
        removed = (own_count / others)[chunk, None, None] * step[..., :, None] * step[..., None, :]
        mean_shift = one_hot[chunk, :, None] * (step / others[chunk, None])[..., None, :]  # (..., chunk, c, t)
        reduced = shrunk(scatter[..., None, :, :] - removed, items - 1 - classes)
        slope, offset = gaussian(means[..., None, :, :] - mean_shift, reduced)
        logits.append((scores[..., chunk, None, :] @ slope)[..., 0, :] + offset)
    joined = torch.cat(logits, -2)
    return joined if balanced else joined + prior_without_self(one_hot)


def class_prior(one_hot: Tensor) -> Tensor:
    """Return log(n_k / n), (c,), of one-hot classes (n, c).

    Example:
        >>> class_prior(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([-0.6931, -0.6931])
    """
    return (one_hot.sum(0) / len(one_hot)).log()


def prior_without_self(one_hot: Tensor) -> Tensor:
    """Return `class_prior` of the other items for each item, (n, c); the single item of a class stays.

    Example:
        >>> prior_without_self(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))[2]
        tensor([-0.6931, -0.6931])
    """
    return ((one_hot.sum(0) - one_hot).clamp_min(1) / (len(one_hot) - 1)).log()


def label_discriminants(scores: Tensor, labels: Tensor, balanced: bool = False) -> Decision:
    """Fit a discriminant of two classes, present and absent, for each label, on the score of this label alone.

    logit = (q - (m_1 + m_0) / 2) (m_1 - m_0) / v + log(n_1 / n_0), with the means m of the scores of the items with and
    without the label, and v their variance within these two classes, shrunk as in `class_discriminant`. A label that
    all or no items have gets the constant logit log((n_1 + 1/2) / (n_0 + 1/2)).

    Args:
        scores: Scores, (..., n, labels).
        labels: 1 if an item has a label and 0 otherwise, (n, labels).
        balanced: Whether to leave out the term log(n_1 / n_0).

    Example:
        >>> scores = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
        >>> fit = label_discriminants(scores, torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
        >>> (torch.tensor([[1.5]]) @ fit.slope + fit.offset > 0).item()
        True
    """
    items = len(labels)
    with_label, without_label = labels.sum(0), items - labels.sum(0)  # (labels,)
    mean_with = (labels * scores).sum(-2, keepdim=True) / with_label.clamp_min(1)  # (..., 1, labels)
    mean_without = ((1 - labels) * scores).sum(-2, keepdim=True) / without_label.clamp_min(1)
    deviations = scores - torch.where(labels > 0, mean_with, mean_without)  # (..., n, labels)
    scatter = deviations.square().sum(-2, keepdim=True)
    slope, offset = two_classes(mean_with, mean_without, with_label, without_label, scatter, items - 2, balanced)
    own_count = torch.where(labels > 0, with_label, without_label)
    others = (own_count - 1).clamp_min(1)
    slopes, offsets = two_classes(
        mean_with - labels * deviations / others,
        mean_without - (1 - labels) * deviations / others,
        with_label - labels,
        without_label - (1 - labels),
        (scatter - own_count / others * deviations.square()).clamp_min(0),
        items - 3,
        balanced,
    )
    return Decision(torch.diag_embed(slope[..., 0, :]), offset[..., 0, :], scores * slopes + offsets)


def two_classes(
    mean_with: Tensor,
    mean_without: Tensor,
    with_label: Tensor,
    without_label: Tensor,
    scatter: Tensor,
    degrees_of_freedom: int,
    balanced: bool,
) -> tuple[Tensor, Tensor]:
    """Return slope and offset of the discriminant of each label; all tensors can be broadcast to (..., n, labels)."""
    variance = scatter / max(degrees_of_freedom, 1) * (1 + SHRINKAGE) + SMALLEST_VARIANCE
    has_both = (with_label > 0) & (without_label > 0)
    slope = (mean_with - mean_without) / variance * has_both
    offset = -slope * (mean_with + mean_without) / 2
    smoothing = torch.where(has_both, 0.0, 0.5).to(scatter)
    frequency = ((with_label + smoothing) / (without_label + smoothing)).log()
    return slope, offset if balanced else offset + frequency


def item_weights(targets: Targets, balanced: bool, groups: Tensor | None = None) -> Tensor:
    """Return the weight of each item of the support set in a leave-one-out likelihood, (n,).

    The single item of a class gets 0, since the class is empty without it.

    Args:
        targets: The targets of the support set.
        balanced: Whether all classes weigh the same in sum.
        groups: Group of each item, (n,): the items of a class that is one group get 0.

    Example:
        >>> item_weights(Targets.classes(torch.tensor([0, 1, 1]), count=2), False)
        tensor([0., 1., 1.])
    """
    if targets.kind != "classes":
        return torch.ones_like(targets.matrix[:, 0])
    own_count = targets.matrix @ targets.matrix.sum(0)
    in_group = torch.ones_like(own_count)  # items of the class in the group of an item
    if groups is not None:
        same_class = targets.matrix @ targets.matrix.mT
        in_group = (same_class * (groups[:, None] == groups)).sum(1)
    is_counted = (own_count > in_group).to(own_count)
    return is_counted / own_count if balanced else is_counted
