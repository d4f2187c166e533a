"""Losses on embeddings, with cosine similarity.

Shapes: features are (items, channels), labels are integers (items,). Every loss is a scalar, a mean over items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def matching_loss(
    support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, temperature: float = 0.1
) -> Tensor:
    """Return the loss of a soft nearest-neighbour vote (Vinyals et al. 2016, arXiv:1606.04080, equations 1 and 2).

    Mean over queries q of -log sum_{i: y_i = y_q} a(q, i), with a(q, i) = softmax_i(cos(f_q, f_i) / temperature).

    Args:
        support: Features of the labelled items, (n, channels).
        support_labels: Their labels, (n,).
        query: Features of the items to label, (m, channels).
        query_labels: Their labels, (m,).
        temperature: Divides the cosine similarities; smaller values look at nearer neighbours only.

    Raises:
        ValueError: The label of a query does not occur in the support set.

    Example:
        >>> support, labels = torch.eye(2), torch.tensor([0, 1])
        >>> round(float(matching_loss(support, labels, support, labels, temperature=1.0)), 4)
        0.3133
    """
    logits = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT / temperature  # (m, n)
    is_same_class = query_labels[:, None] == support_labels[None]  # (m, n)
    _check_classes_occur(is_same_class.any(1), query_labels)
    # As a difference of logarithms: a sum of softmax weights may underflow to 0.
    log_weight_of_class = logits.masked_fill(~is_same_class, float("-inf")).logsumexp(-1)
    return (logits.logsumexp(-1) - log_weight_of_class).mean()


def prototypical_loss(
    support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, temperature: float = 0.1
) -> Tensor:
    """Return the cross-entropy over cosines to class means (Snell et al. 2017, arXiv:1703.05175, equations 1 and 2).

    The cosine replaces the paper's negative distance, and a prototype is the mean of unit vectors.

    Args:
        support: Features of the labelled items, (n, channels).
        support_labels: Their labels, (n,).
        query: Features of the items to label, (m, channels).
        query_labels: Their labels, (m,).
        temperature: Divides the cosine similarities.

    Raises:
        ValueError: The label of a query does not occur in the support set.

    Example:
        >>> support, labels = torch.eye(2), torch.tensor([0, 1])
        >>> round(float(prototypical_loss(support, labels, support, labels, temperature=1.0)), 4)
        0.3133
    """
    classes, class_index = torch.unique(support_labels, return_inverse=True)
    unit = F.normalize(support, dim=-1)
    zeros = torch.zeros(len(classes), unit.shape[1], device=unit.device, dtype=unit.dtype)
    class_sums = zeros.index_add(0, class_index, unit)  # (classes, channels); the norm does not matter for cosines
    logits = F.normalize(query, dim=-1) @ F.normalize(class_sums, dim=-1).mT / temperature  # (m, classes)
    _check_classes_occur(torch.isin(query_labels, classes), query_labels)
    return F.cross_entropy(logits, torch.searchsorted(classes, query_labels))


def supervised_contrastive_loss(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the supervised contrastive loss L_out (Khosla et al. 2020, arXiv:2004.11362, equation 2).

    Mean over anchors i of -1/|P(i)| sum_{p in P(i)} log softmax_p(cos(f_i, f_p) / temperature). P(i) are the other
    items of the same class, and the softmax runs over all other items. Items without a partner are not anchors.

    Args:
        features: Features of the items, (n, channels).
        labels: Their labels, (n,).
        temperature: Divides the cosine similarities.

    Raises:
        ValueError: No two items share a label.

    Example:
        >>> features, labels = torch.eye(3), torch.tensor([0, 0, 1])
        >>> round(float(supervised_contrastive_loss(features, labels)), 4)  # all cosines are 0: log 2
        0.6931
    """
    unit = F.normalize(features, dim=-1)
    is_self = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.mT / temperature).masked_fill(is_self, float("-inf"))  # (n, n)
    log_probabilities = logits - logits.logsumexp(-1, keepdim=True)  # (n, n), -inf on the diagonal
    is_positive = (labels[:, None] == labels[None]) & ~is_self
    positives = is_positive.sum(-1)  # (n,)
    if not positives.any():
        raise ValueError("supervised contrastive loss: no two examples share a label")
    # Masked and not multiplied by 0, since 0 x -inf is NaN.
    per_anchor = -log_probabilities.masked_fill(~is_positive, 0.0).sum(-1) / positives.clamp_min(1)
    return per_anchor[positives > 0].mean()


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cosine distance 1 - cos(student, teacher); only the student gets a gradient.

    The frozen network on a clean input can thus teach the adapted network on a shifted input.

    Args:
        student: Features of the items, (n, channels).
        teacher: The features to match, (n, channels).

    Example:
        >>> float(distillation_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])))
        1.0
    """
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def _check_classes_occur(occurs: Tensor, labels: Tensor) -> None:
    """Raise a ValueError that names the first label (m,) for which `occurs` (m,) is false."""
    if not occurs.all():
        raise ValueError(f"query label {int(labels[~occurs][0])} does not occur in the support set")
