"""Logits of each item by a ridge regression and a discriminant of its scores that have not seen the item.

A discriminant is fitted to leave-one-out scores of the support set. The scores of the other items are by regressions
that have seen the item, so that leaving it out of the discriminant alone gives a likelihood that is far too good. Here
the others' scores are by regressions without the item, too. Shapes: n items, g groups that are left out one at a time
(an item each, unless groups are given), m left-out items, t scores, c classes; "..." are regressions of the same items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalora.learner.readouts.discriminant import gaussian, shrunk, two_classes
from metalora.learner.readouts.targets import Targets

NUMBERS_AT_ONCE = 1_000_000


class _Regression(NamedTuple):
    """A kernel ridge regression on all items.

    Attributes:
        inverse: H = (K + ridge I)^-1, (..., n, n).
        blocks: The inverse of the part of H within the groups, (..., n, n); 0 between groups.
        centred: Centred targets Y, (n, t).
    """

    inverse: Tensor
    blocks: Tensor
    centred: Tensor


class _Scores(NamedTuple):
    """Scores without each of some groups.

    Attributes:
        others: Leave-one-out scores of the other items by regressions without the group, too, (..., g, n, t).
        present: 1 for the items that are not of the group, (g, n).
        own: Scores of the left-out items, (..., m, t).
        group: The group of each of them, (m,).
    """

    others: Tensor
    present: Tensor
    own: Tensor
    group: Tensor


def left_out_logits(
    inverse: Tensor, targets: Targets, balanced: bool, groups: Tensor | None = None, chosen: Tensor | None = None
) -> Tensor:
    """Return the logits of each item by a fit to the items of other groups.

    Without group g, H loses H_g H_gg^-1 H_g^T, and the centred targets change by the shift of their mean. The
    leave-one-out score of another item j is then y_j - a_j / H_jj of the smaller regression.

    Args:
        inverse: H = (K + ridge I)^-1 of all items, (..., n, n).
        targets: Classes or labels of the items.
        balanced: Whether to leave out how often classes or labels occur.
        groups: Group of each item, (n,); None: each item is one.
        chosen: Which items' logits are wanted, a mask (n,) that has whole groups; None: all.

    Returns:
        Logits, (..., m, count), in the order of the items.

    Example:
        >>> targets = Targets.classes(torch.arange(6) % 2, 2).to(torch.ones(1).double())
        >>> left_out_logits(torch.eye(6).double(), targets, balanced=False).shape
        torch.Size([6, 2])
    """
    numbers = torch.arange(inverse.shape[-1], device=inverse.device)
    group_of = numbers if groups is None else torch.unique(groups, return_inverse=True)[1]
    is_same = group_of[:, None] == group_of
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    blocks = torch.linalg.inv(inverse * is_same) if groups is not None else torch.diag_embed(1 / diagonal)
    regression = _Regression(inverse, blocks, targets.centred())
    wanted = numbers if chosen is None else numbers[chosen]
    at_once = max(1, NUMBERS_AT_ONCE // (diagonal.numel() * (targets.count + 1)))
    discriminant = _of_classes if targets.kind == "classes" else _of_labels
    logits = inverse.new_empty(*diagonal.shape, targets.count)
    for left_out in torch.split(torch.unique(group_of[wanted]), at_once):
        member = (group_of[:, None] == left_out).to(inverse)  # (n, g)
        of_items = numbers[member.any(1)]
        scores = _scores(regression, of_items, member[of_items].argmax(1), member)
        logits[..., of_items, :] = discriminant(scores, targets.matrix, balanced)
    return logits[..., wanted, :]


def _scores(fit: _Regression, items: Tensor, group: Tensor, member: Tensor) -> _Scores:
    """Return the scores without each of some groups, for their items (m,), whose groups are (m,) of (n, g)."""
    present = 1 - member.mT  # (g, n)
    shift = (member.mT @ fit.centred) / present.sum(1, keepdim=True).clamp_min(1)  # of the centred targets, (g, t)
    of_items, blocks = fit.inverse[..., items], fit.blocks[..., items]  # (..., n, m)
    toward = fit.inverse @ blocks
    lost_diagonal = ((toward * of_items) @ member[items]).mT  # (..., g, n)
    diagonal = fit.inverse.diagonal(dim1=-2, dim2=-1)[..., None, :] - lost_diagonal
    solved = torch.cat([fit.inverse @ fit.centred, fit.inverse.sum(-1, keepdim=True)], -1)  # of Y and of ones
    lost = toward.mT[..., None] * solved[..., items, None, :]  # (..., m, n, t + 1)
    of_groups = lost.new_zeros(*lost.shape[:-3], len(present), *lost.shape[-2:]).index_add(-3, group, lost)
    reduced = solved[..., None, :, :] - of_groups  # (..., g, n, t + 1)
    dual = reduced[..., :-1] + reduced[..., -1:] * shift[:, None]
    safe = torch.where(present > 0, diagonal, torch.ones_like(diagonal)).clamp_min(1e-12)
    others = fit.centred + shift[:, None] - dual / safe[..., None]
    of_all = solved[..., None, :-1] + solved[..., None, -1:] * shift  # (..., n, g, t)
    own = fit.centred[items] + shift[group] - torch.einsum("...nm,...nmt->...mt", blocks, of_all[..., group, :])
    return _Scores(others, present, own, group)


def _of_classes(scores: _Scores, classes: Tensor, balanced: bool) -> Tensor:
    """Return the logits (..., m, c) of the left-out items by the discriminant `class_discriminant` of the others."""
    of_class = scores.present[..., None] * classes  # (g, n, c)
    counts = of_class.sum(1).clamp_min(1)  # the mean of a class without items is 0
    means = of_class.mT @ scores.others / counts[..., None]  # (..., g, c, t)
    deviations = scores.others * scores.present[..., None] - of_class @ means
    left = scores.present.sum(1)  # (g,)
    degrees = (left - classes.shape[1]).clamp_min(1)[:, None, None]
    slope, offset = gaussian(means, shrunk(deviations.mT @ deviations / degrees, 1))
    if not balanced:
        offset = offset + (counts / left.clamp_min(1)[:, None]).log()
    of_items = slope[..., scores.group, :, :], offset[..., scores.group, :]
    logits: Tensor = (scores.own[..., None, :] @ of_items[0])[..., 0, :] + of_items[1]
    return logits


def _of_labels(scores: _Scores, labels: Tensor, balanced: bool) -> Tensor:
    """Return the logits (..., m, labels) of left-out items by the discriminants `label_discriminants` of the others."""
    present = scores.present[..., None]  # (g, n, 1)
    has, lacks = present * labels, present * (1 - labels)
    count_with, count_without = has.sum(1), lacks.sum(1)  # (g, labels)
    mean_with = (has * scores.others).sum(-2) / count_with.clamp_min(1)
    mean_without = (lacks * scores.others).sum(-2) / count_without.clamp_min(1)
    squares = has * (scores.others - mean_with[..., None, :]).square()
    squares = squares + lacks * (scores.others - mean_without[..., None, :]).square()
    degrees = (present.sum(1) - 2).clamp_min(1)
    slope, offset = two_classes(
        mean_with, mean_without, count_with, count_without, squares.sum(-2) / degrees, 1, balanced
    )
    return scores.own * slope[..., scores.group, :] + offset[..., scores.group, :]
