"""Label prediction from a bank of labelled features: k-NN, nearest class mean, linear probe, LDA.

Legend: n bank items, m queries, d channels, c classes, k neighbours. Features are (items, d) tensors, labels are
integer tensors (items,), accuracies are fractions in [0, 1]. A zero feature vector has similarity 0 with everything.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Weighting = Literal["uniform", "dino"]

QUERIES_AT_ONCE = 1024
SINGULAR = 1e-10  # smallest over largest eigenvalue


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int,
    *,
    weighting: Weighting = "uniform",
    temperature: float = 0.07,
) -> Tensor:
    """Predict the label of each query (m, d) by a vote of its k most cosine-similar items of the bank (n, d).

    "uniform": one vote each, a tie goes to the tied label with the largest summed similarity. "dino": a neighbour
    votes with weight exp(similarity / temperature) (Caron et al. 2021, after Wu et al. 2018), and `temperature` has
    no other use. Equally similar items are taken in bank order, and what is tied even then goes to the smaller label.
    Returns labels (m,). ValueError: k outside 1..n, unknown weighting, temperature <= 0, unfit features or labels.
    """
    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries = _checked_queries(queries, bank)
    _check_vote(k, len(bank), weighting, temperature)
    classes, targets = bank_labels.unique(return_inverse=True)
    bank = normalize(bank, dim=1)
    votes = [
        _vote(normalize(chunk, dim=1) @ bank.T, targets, len(classes), k, weighting, temperature)
        for chunk in queries.split(QUERIES_AT_ONCE)
    ]
    return classes[torch.cat(votes)]


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: int,
    *,
    weighting: Weighting = "uniform",
    temperature: float = 0.07,
) -> float:
    """Return the share of queries (m, d) whose `knn_predict` label is their own.

    A query of a class that the bank lacks counts as wrong. ValueError: as `knn_predict`, and query labels unlike (m,).
    """
    queries, query_labels = _checked("queries", queries, query_labels)
    predicted = knn_predict(bank, bank_labels, queries, k, weighting=weighting, temperature=temperature)
    return _share_equal(predicted, query_labels)


def loo_knn_accuracy(
    bank: Tensor,
    labels: Tensor,
    k: int,
    *,
    weighting: Weighting = "uniform",
    temperature: float = 0.07,
) -> float:
    """Return the k-NN accuracy of a bank (n, d) on itself, each item judged by all the others (leave-one-out).

    ValueError: k outside 1..n-1, unknown weighting, temperature <= 0, unfit features or labels.
    """
    bank, labels = _checked("bank", bank, labels)
    _check_vote(k, len(bank) - 1, weighting, temperature)
    classes, targets = labels.unique(return_inverse=True)
    bank = normalize(bank, dim=1)
    votes = []
    for rows in torch.arange(len(bank), device=bank.device).split(QUERIES_AT_ONCE):
        similarity = bank[rows] @ bank.T  # (rows, n)
        similarity[torch.arange(len(rows), device=bank.device), rows] = -torch.inf
        votes.append(_vote(similarity, targets, len(classes), k, weighting, temperature))
    return _share_equal(classes[torch.cat(votes)], labels)


def nearest_class_mean_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor) -> float:
    """Return the share of queries (m, d) that are most cosine-similar to the mean bank feature of their own class.

    mean_c = average of x / |x| over the bank items of class c. ValueError: unfit features or labels.
    """
    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries, query_labels = _checked("queries", queries, query_labels)
    queries = _checked_queries(queries, bank)
    classes, targets = bank_labels.unique(return_inverse=True)
    member = one_hot(targets, len(classes)).to(bank)  # (n, c)
    means = (member.T @ normalize(bank, dim=1)) / member.sum(0)[:, None]
    similarity = normalize(queries, dim=1) @ normalize(means, dim=1).T  # (m, c)
    return _share_equal(classes[similarity.argmax(1)], query_labels)


def linear_probe_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    inverse_l2: float = 1.0,
    max_iterations: int = 1000,
) -> float:
    """Return the query accuracy of a multinomial logistic regression fitted on the standardised bank (n, d).

    `inverse_l2` is scikit-learn's C. ValueError: unfit features or labels, a bank of one class.
    """
    from sklearn.linear_model import LogisticRegression

    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries, query_labels = _checked("queries", queries, query_labels)
    queries = _checked_queries(queries, bank)
    _check_two_classes(bank_labels, "a linear probe")
    mean, scale = _mean_and_scale(bank)
    probe = LogisticRegression(C=inverse_l2, max_iter=max_iterations)
    probe.fit(((bank.double() - mean) / scale).cpu().numpy(), bank_labels.cpu().numpy())
    predicted = probe.predict(((queries.double() - mean) / scale).cpu().numpy())
    return _share_equal(torch.as_tensor(predicted), query_labels.cpu())


def lda_transform(bank: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a shrinkage LDA on the standardised bank (n, d) and return its projection (m, d) -> (m, min(c - 1, d)).

    The projection maximises between-class over within-class scatter (Ledoit-Wolf shrinkage for each class, 0.5 where
    that leaves the scatter singular) and maps the bank's mean to zero. Constant channels are dropped. With two classes
    it has one dimension, whose cosine is only a sign. ValueError: unfit features or labels, one class, no variance
    within any class.
    """
    bank, labels = _checked("bank", bank, labels)
    _check_two_classes(labels, "LDA")
    classes, targets = labels.unique(return_inverse=True)
    by_class = [bank[targets == index] for index in range(len(classes))]
    if all((items == items[0]).all() for items in by_class):
        raise ValueError(f"LDA needs variance within a class: none of the {len(classes)} classes has two unlike items")
    varies = bank.amax(0) > bank.amin(0)  # (d,)
    mean, scale = _mean_and_scale(bank)
    standard = ((bank.double() - mean) / scale)[:, varies]
    projection = _lda_directions(standard.cpu(), labels.cpu())[:, : len(classes) - 1].to(bank.device)

    def project(features: Tensor) -> Tensor:
        features = _checked_queries(features, bank)
        return (((features.double() - mean) / scale)[:, varies] @ projection).to(features.dtype)

    return project


def check_bank(labels: Tensor, k: int) -> int:
    """Return the size of the bank's smallest class, with a warning where it is below the 2k that the protocol wants."""
    classes, counts = torch.as_tensor(labels).unique(return_counts=True)
    if not len(classes):
        raise ValueError("the bank is empty")
    smallest = int(counts.min())
    if smallest < 2 * k:
        label = int(classes[counts.argmin()])
        warnings.warn(
            f"the bank has {smallest} items of class {label}; k = {k} wants at least {2 * k} of every class",
            stacklevel=2,
        )
    return smallest


def _lda_directions(features: Tensor, labels: Tensor) -> Tensor:
    """Return scikit-learn's discriminant directions (d, d), the best one first, for float64 features (n, d)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = features.numpy(), labels.numpy()
    # Items that all deviate alike from their class mean, such as two of them, make Ledoit-Wolf shrink by 0.
    for shrinkage in ("auto", 0.5):
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Only one sample available")  # it adds nothing to the scatter
            try:
                lda.fit(x, y)
            except np.linalg.LinAlgError:
                continue
        scatter = np.linalg.eigvalsh(lda.covariance_)
        if scatter[0] > scatter[-1] * SINGULAR:
            return torch.from_numpy(lda.scalings_.copy())
    raise ValueError(f"LDA fails on a bank of {len(x)} items: its within-class scatter is singular even when shrunk")


def _vote(
    similarity: Tensor, targets: Tensor, classes: int, k: int, weighting: Weighting, temperature: float
) -> Tensor:
    """Return the winning class index (m,) for similarities (m, n) to items of class index `targets` (n,)."""
    chosen = _nearest(similarity, k)  # (m, k)
    near = similarity.gather(1, chosen)
    neighbour_class = targets[chosen]
    zeros = similarity.new_zeros(len(similarity), classes)
    if weighting == "dino":
        weights = ((near - near.amax(1, keepdim=True)) / temperature).exp()
        return zeros.scatter_add(1, neighbour_class, weights).argmax(1)
    count = zeros.scatter_add(1, neighbour_class, torch.ones_like(near))
    summed = zeros.scatter_add(1, neighbour_class, near)
    tied = count == count.amax(1, keepdim=True)
    return summed.masked_fill(~tied, -torch.inf).argmax(1)


def _nearest(similarity: Tensor, k: int) -> Tensor:
    """Return the columns (m, k) of the k largest similarities (m, n), in bank order; of equal ones the first."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    above, level = similarity > last, similarity == last
    room = k - above.sum(1, keepdim=True)
    chosen = above | (level & (level.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def _checked(name: str, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (n, d) in at least float32 and labels (n,), or raise a ValueError that says what is wrong."""
    features, labels = _checked_features(name, features), torch.as_tensor(labels)
    if labels.ndim != 1 or len(labels) != len(features):
        raise ValueError(f"{name}: {len(features)} features but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name}: labels must be integers, not {labels.dtype}")
    return features, labels.to(features.device)


def _checked_features(name: str, features: Tensor) -> Tensor:
    """Return features (n, d) in at least float32, without gradient, or raise a ValueError."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name}: features must have shape (items, channels), not {tuple(features.shape)}")
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"{name}: {bad} of {len(features)} features are NaN or infinite")
    return features if features.dtype == torch.float64 else features.float()


def _checked_queries(queries: Tensor, bank: Tensor) -> Tensor:
    """Return queries (m, d) in the bank's dtype and on its device, or raise a ValueError."""
    queries = _checked_features("queries", queries)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} channels, the bank has {bank.shape[1]}")
    return queries.to(bank)


def _check_vote(k: int, available: int, weighting: str, temperature: float) -> None:
    """Raise a ValueError for a vote that cannot be held."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if k > available:
        raise ValueError(f"k = {k} neighbours wanted, but only {available} bank items are available")
    if weighting not in ("uniform", "dino"):
        raise ValueError(f"weighting {weighting!r} is unknown; known: 'uniform', 'dino'")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _check_two_classes(labels: Tensor, user: str) -> None:
    """Raise a ValueError for a bank with one class."""
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(f"{user} needs a bank of at least 2 classes; this one has only class {classes.tolist()[0]}")


def _mean_and_scale(bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float64 mean (d,) and standard deviation (d,) of a bank (n, d), 1 for a constant channel."""
    deviation = bank.double().std(0, correction=0)
    return bank.double().mean(0), deviation.where(bank.amax(0) > bank.amin(0), torch.ones_like(deviation))


def _share_equal(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()
