"""Label prediction from a bank of labelled features: k-NN, nearest class mean, linear probe, LDA.

Shapes: n items of the bank, m queries, d channels, c classes, k neighbours. Features are (items, d), labels are
integers (items,), accuracies are fractions from 0 to 1. A feature vector of zeros has similarity 0 with everything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from metalora._util.suggest import nearest

Weighting = Literal["uniform", "dino"]

QUERIES_AT_ONCE = 1024
SINGULAR = 1e-10  # a scatter whose smallest eigenvalue is below this share of its largest is singular


# ---- nearest neighbours ---------------------------------------------------------------------------------------------
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int,
    *,
    weighting: Weighting = "uniform",
    temperature: float = 0.07,
) -> Tensor:
    """Predict the label of each query by a vote of its k most cosine-similar items of the bank.

    Among equally similar items, the first in the bank count; among labels that are tied in every respect, the smallest.

    Args:
        bank: Features of the labelled items, (n, d).
        bank_labels: Their labels, (n,).
        queries: Features of the items to label, (m, d).
        k: Number of neighbours, from 1 to n.
        weighting: "uniform": every neighbour has one vote, and a tie goes to the tied label with the largest summed
            similarity. "dino": a neighbour has exp(similarity / temperature) votes (Caron et al. 2021,
            arXiv:2104.14294, after Wu et al. 2018, arXiv:1805.01978).
        temperature: Temperature of "dino"; "uniform" does not use it.

    Returns:
        Predicted labels, (m,).

    Raises:
        ValueError: k is not from 1 to n, the weighting is unknown, the temperature is not positive, a feature is not
            finite, or shapes or types do not fit.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(bank, torch.tensor([7, 7, 4]), torch.tensor([[2.0, 0.1], [0.1, 3.0]]), k=1)
        tensor([7, 4])
    """
    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries = _checked_queries(queries, bank)
    _check_vote(k, len(bank), weighting, temperature)
    classes, class_index = torch.unique(bank_labels, return_inverse=True)
    unit_bank = normalize(bank, dim=1)
    winners = []
    for chunk in torch.split(queries, QUERIES_AT_ONCE):
        similarity = normalize(chunk, dim=1) @ unit_bank.T  # (chunk, n)
        winners.append(_vote(similarity, class_index, len(classes), k, weighting, temperature))
    predicted: Tensor = classes[torch.cat(winners)]
    return predicted


def knn_predict_many(
    banks: Sequence[Tensor],
    bank_labels: Sequence[Tensor],
    queries: Sequence[Tensor],
    k: int,
    *,
    weighting: Weighting = "uniform",
    temperature: float = 0.07,
) -> list[Tensor]:
    """Predict the labels of the queries of several banks, such as those of several tenants, in one call.

    Banks of one shape with as many queries are compared in one batched product.

    Args:
        banks: Features of the labelled items of each bank, (n, d) each; n and d may differ.
        bank_labels: Their labels, (n,) each.
        queries: Features of the items to label by each bank, (m, d) each; m may differ.
        k: Number of neighbours, from 1 to the smallest n.
        weighting: See `knn_predict`.
        temperature: See `knn_predict`.

    Returns:
        What `knn_predict` gives for each bank, (m,) each.

    Raises:
        ValueError: As `knn_predict`, or the numbers of banks, labels and queries differ.

    Example:
        >>> first, second = torch.eye(2), torch.eye(3)
        >>> labels = [torch.tensor([7, 4]), torch.tensor([0, 1, 2])]
        >>> knn_predict_many([first, second], labels, [first[1:], second[:2]], k=1)
        [tensor([4]), tensor([0, 1])]
    """
    if not len(banks) == len(bank_labels) == len(queries):
        raise ValueError(f"{len(banks)} banks, {len(bank_labels)} sets of labels and {len(queries)} sets of queries")
    groups: dict[Any, list[int]] = {}
    checked = []
    for number, (bank, labels, of_bank) in enumerate(zip(banks, bank_labels, queries, strict=True)):
        bank, labels = _checked(f"bank {number}", bank, labels)
        of_bank = _checked_queries(of_bank, bank)
        _check_vote(k, len(bank), weighting, temperature)
        checked.append((bank, labels, of_bank))
        groups.setdefault((bank.shape, of_bank.shape, bank.dtype, bank.device), []).append(number)
    predicted: dict[int, Tensor] = {}
    for numbers in groups.values():
        unit_banks, unit_queries = (
            normalize(torch.stack([checked[number][part] for number in numbers]), dim=2) for part in (0, 2)
        )
        similarities = unit_queries @ unit_banks.mT  # (banks, m, n)
        for number, similarity in zip(numbers, similarities, strict=True):
            classes, class_index = torch.unique(checked[number][1], return_inverse=True)
            predicted[number] = classes[_vote(similarity, class_index, len(classes), k, weighting, temperature)]
    return [predicted[number] for number in range(len(banks))]


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
    """Return the share of queries whose label `knn_predict` predicts.

    A query whose class is not in the bank counts as wrong.

    Args:
        bank: Features of the labelled items, (n, d).
        bank_labels: Their labels, (n,).
        queries: Features of the items to label, (m, d).
        query_labels: Their true labels, (m,).
        k: Number of neighbours, from 1 to n.
        weighting: See `knn_predict`.
        temperature: See `knn_predict`.

    Raises:
        ValueError: As `knn_predict`, and if there is not one label per query.

    Example:
        >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_accuracy(bank, labels, bank, torch.tensor([0, 1, 1]), k=1)
        0.6666666666666666
    """
    queries, query_labels = _checked("queries", queries, query_labels)
    predicted = knn_predict(bank, bank_labels, queries, k, weighting=weighting, temperature=temperature)
    return _share_equal(predicted, query_labels)


def _vote(
    similarity: Tensor, class_index: Tensor, classes: int, k: int, weighting: Weighting, temperature: float
) -> Tensor:
    """Return the index of the winning class of each query.

    Args:
        similarity: Cosines of queries and items of the bank, (m, n).
        class_index: Index of the class of each item of the bank, (n,).
        classes: Number of classes.
        k: Number of neighbours.
        weighting: See `knn_predict`.
        temperature: See `knn_predict`.

    Returns:
        Class indices, (m,).
    """
    neighbours = _nearest_items(similarity, k)  # (m, k)
    neighbour_similarity = similarity.gather(1, neighbours)
    neighbour_class = class_index[neighbours]
    zeros = similarity.new_zeros(len(similarity), classes)
    if weighting == "dino":
        largest = neighbour_similarity.amax(1, keepdim=True)  # subtracted so that no exponential overflows
        weights = ((neighbour_similarity - largest) / temperature).exp()
        return zeros.scatter_add(1, neighbour_class, weights).argmax(1)
    votes = zeros.scatter_add(1, neighbour_class, torch.ones_like(neighbour_similarity))
    summed_similarity = zeros.scatter_add(1, neighbour_class, neighbour_similarity)
    is_tied = votes == votes.amax(1, keepdim=True)
    return summed_similarity.masked_fill(~is_tied, -torch.inf).argmax(1)


def _nearest_items(similarity: Tensor, k: int) -> Tensor:
    """Return the columns (m, k) of the k largest similarities (m, n) in bank order; of equal ones the first.

    `topk` alone would choose among equal similarities in an order that differs between devices.
    """
    smallest_chosen = similarity.topk(k, dim=1).values[:, -1:]
    is_above = similarity > smallest_chosen
    is_level = similarity == smallest_chosen
    places_left = k - is_above.sum(1, keepdim=True)
    is_chosen = is_above | (is_level & (is_level.cumsum(1) <= places_left))
    return is_chosen.nonzero()[:, 1].view(-1, k)


# ---- class means, linear probe, LDA ---------------------------------------------------------------------------------
def nearest_class_mean_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor) -> float:
    """Return the share of queries that are most cosine-similar to the mean feature of their own class.

    The mean of a class is the average of x / |x| over its items in the bank.

    Args:
        bank: Features of the labelled items, (n, d).
        bank_labels: Their labels, (n,).
        queries: Features of the items to label, (m, d).
        query_labels: Their true labels, (m,).

    Raises:
        ValueError: A feature is not finite, or shapes or types do not fit.

    Example:
        >>> bank, labels = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> nearest_class_mean_accuracy(bank, labels, torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        1.0
    """
    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries, query_labels = _checked("queries", queries, query_labels)
    queries = _checked_queries(queries, bank)
    classes, class_index = torch.unique(bank_labels, return_inverse=True)
    membership = one_hot(class_index, len(classes)).to(bank)  # (n, c)
    means = (membership.T @ normalize(bank, dim=1)) / membership.sum(0)[:, None]  # (c, d)
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
    """Return the accuracy on queries of a multinomial logistic regression that is fitted on the standardised bank.

    Args:
        bank: Features of the labelled items, (n, d).
        bank_labels: Their labels, (n,).
        queries: Features of the items to label, (m, d).
        query_labels: Their true labels, (m,).
        inverse_l2: Inverse strength of the L2 penalty, scikit-learn's C.
        max_iterations: Largest number of iterations of the fit.

    Raises:
        ValueError: The bank has a single class, a feature is not finite, or shapes or types do not fit.

    Example:
        >>> bank, labels = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe_accuracy(bank, labels, torch.tensor([[5.0], [-5.0]]), torch.tensor([0, 1]))
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries, query_labels = _checked("queries", queries, query_labels)
    queries = _checked_queries(queries, bank)
    _check_two_classes(bank_labels, "a linear probe")
    mean, deviation = _mean_and_deviation(bank)
    probe = LogisticRegression(C=inverse_l2, max_iter=max_iterations)
    probe.fit(((bank.double() - mean) / deviation).cpu().numpy(), bank_labels.cpu().numpy())
    predicted = probe.predict(((queries.double() - mean) / deviation).cpu().numpy())
    return _share_equal(torch.as_tensor(predicted), query_labels.cpu())


def lda_transform(bank: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear discriminant analysis with shrinkage on the standardised bank, and return its projection.

    The projection maximises the scatter between classes over the scatter within classes, and maps the mean of the bank
    to zero. The scatter is shrunk as Ledoit and Wolf do, or by 0.5 if that leaves it singular. Constant channels are
    dropped. With two classes the projection has one dimension, in which a cosine is only a sign.

    Args:
        bank: Features of the labelled items, (n, d).
        labels: Their labels, (n,).

    Returns:
        A function from features (m, d) to their projections (m, min(c - 1, d)).

    Raises:
        ValueError: The bank has a single class, or no class has two different items; a feature is not finite, or shapes
            or types do not fit.

    Example:
        >>> bank, labels = torch.randn(30, 4), torch.arange(30) % 3
        >>> project = lda_transform(bank, labels)
        >>> project(torch.randn(5, 4)).shape
        torch.Size([5, 2])
    """
    bank, labels = _checked("bank", bank, labels)
    _check_two_classes(labels, "LDA")
    _check_variance_within_classes(bank, labels)
    varies = bank.amax(0) > bank.amin(0)  # (d,)
    mean, deviation = _mean_and_deviation(bank)
    standardised = ((bank.double() - mean) / deviation)[:, varies]
    dimensions = len(torch.unique(labels)) - 1
    projection = _lda_directions(standardised.cpu(), labels.cpu())[:, :dimensions].to(bank.device)

    def project(features: Tensor) -> Tensor:
        """Project features (m, d) to (m, dimensions)."""
        features = _checked_queries(features, bank)
        projected = ((features.double() - mean) / deviation)[:, varies] @ projection
        return projected.to(features.dtype)

    return project


def _lda_directions(features: Tensor, labels: Tensor) -> Tensor:
    """Return the discriminant directions of scikit-learn, (d, d) with the best first, for float64 features (n, d)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = features.numpy(), labels.numpy()
    # If all items deviate equally from the mean of their class, as any two do, Ledoit and Wolf's shrinkage is 0.
    for shrinkage in ("auto", 0.5):
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Only one sample available")  # such a class adds nothing to the scatter
            try:
                lda.fit(x, y)
            except np.linalg.LinAlgError:
                continue
        eigenvalues = np.linalg.eigvalsh(lda.covariance_)  # in ascending order
        if eigenvalues[0] > eigenvalues[-1] * SINGULAR:
            return torch.from_numpy(lda.scalings_.copy())
    raise ValueError(f"LDA fails on a bank of {len(x)} items: its within-class scatter is singular even when shrunk")


# ---- checks of the arguments ----------------------------------------------------------------------------------------
def _checked(name: str, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (n, d) in at least float32 and labels (n,) on one device; ValueError if they do not fit."""
    features, labels = _checked_features(name, features), torch.as_tensor(labels)
    if labels.ndim != 1 or len(labels) != len(features):
        raise ValueError(f"{name}: {len(features)} features but labels of shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name}: labels must be integers, not {labels.dtype}")
    return features, labels.to(features.device)


def _checked_features(name: str, features: Tensor) -> Tensor:
    """Return features (n, d) in at least float32, without gradient; ValueError if they are not finite or not 2-D."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name}: features must have shape (items, channels), not {tuple(features.shape)}")
    is_finite = features.isfinite().all(1)
    if not is_finite.all():
        raise ValueError(f"{name}: {int((~is_finite).sum())} of {len(features)} features are NaN or infinite")
    return features if features.dtype == torch.float64 else features.float()


def _checked_queries(queries: Tensor, bank: Tensor) -> Tensor:
    """Return queries (m, d) in the dtype and on the device of the bank; ValueError if they do not fit."""
    queries = _checked_features("queries", queries)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} channels, the bank has {bank.shape[1]}")
    return queries.to(bank)


def _check_vote(k: int, items: int, weighting: str, temperature: float) -> None:
    """Raise a ValueError for settings with which `items` items of a bank cannot vote."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if k > items:
        raise ValueError(f"k = {k} neighbours wanted, but only {items} bank items are available")
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting {weighting!r} is unknown{nearest(weighting, get_args(Weighting))}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _check_two_classes(labels: Tensor, user: str) -> None:
    """Raise a ValueError for a bank with a single class; `user` is what needs more."""
    classes = torch.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"{user} needs a bank of at least 2 classes; this one has only class {classes.tolist()[0]}")


def _check_variance_within_classes(bank: Tensor, labels: Tensor) -> None:
    """Raise a ValueError if all items of each class are equal."""
    classes = torch.unique(labels)
    for label in classes:
        items = bank[labels == label]
        if (items != items[0]).any():
            return
    raise ValueError(f"LDA needs variance within a class: none of the {len(classes)} classes has two different items")


def _mean_and_deviation(bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and the standard deviation (d,) of a bank in float64; 1 for a constant channel."""
    deviation = bank.double().std(0, correction=0)
    varies = bank.amax(0) > bank.amin(0)
    return bank.double().mean(0), deviation.where(varies, torch.ones_like(deviation))


def _share_equal(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of equal labels, from 0 to 1."""
    return (predicted == labels).double().mean().item()
