"""Losses on embeddings: f are features (n, d), y labels (n,). All use cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor


def matching_loss(
    support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, temperature: float = 0.1
) -> Tensor:
    """k-NN made soft: -log sum_{i: y_i = y_q} softmax_i(cos(f_q, f_i) / temperature)  (1606.04080)."""
    logits = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT / temperature
    same = query_labels[:, None] == support_labels[None]
    _check_known(same.any(1), query_labels)
    chosen = logits.masked_fill(~same, float("-inf")).logsumexp(-1)
    return (logits.logsumexp(-1) - chosen).mean()


def prototypical_loss(
    support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy over cosine to the classes' mean features  (prototypical networks, 1703.05175, with cosine)."""
    classes, index = support_labels.unique(return_inverse=True)
    unit = F.normalize(support, dim=-1)
    sums = torch.zeros(len(classes), unit.shape[1], device=unit.device, dtype=unit.dtype).index_add(0, index, unit)
    logits = F.normalize(query, dim=-1) @ F.normalize(sums, dim=-1).mT / temperature
    _check_known(torch.isin(query_labels, classes), query_labels)
    return F.cross_entropy(logits, torch.searchsorted(classes, query_labels))


def supervised_contrastive_loss(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over anchors of -1/|P| sum_{p in P} log softmax_p(cos / temperature), self excluded  (2004.11362, L_out)."""
    unit = F.normalize(features, dim=-1)
    self_mask = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.mT / temperature).masked_fill(self_mask, float("-inf"))
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    positive = (labels[:, None] == labels[None]) & ~self_mask
    counts = positive.sum(-1)
    if not counts.any():
        raise ValueError("supervised contrastive loss: no two examples share a label")
    per_anchor = -log_p.masked_fill(~positive, 0.0).sum(-1) / counts.clamp_min(1)
    return per_anchor[counts > 0].mean()


def _check_known(known: Tensor, labels: Tensor) -> None:
    if not known.all():
        raise ValueError(f"query label {int(labels[~known][0])} does not occur in the support set")


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(student, teacher): the frozen network on the clean input teaches the adapted one on the shifted input."""
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()
