"""k-NN, class means, linear probe and LDA against plain loops and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from metalora.knn import (
    knn_accuracy,
    knn_predict,
    knn_predict_many,
    lda_transform,
    linear_probe_accuracy,
    nearest_class_mean_accuracy,
)


def clusters(per_class, d=5, classes=(3, 7, 11), spread=1.0, seed=0, shift=0.0):
    """Gaussian clusters in float64, labels (not consecutive) in mixed order."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(classes), d, generator=torch.Generator().manual_seed(99)).double() + shift
    labels = torch.tensor(classes).repeat(per_class)
    rows = torch.arange(len(classes)).repeat(per_class)
    return centres[rows] + spread * torch.randn(len(labels), d, generator=g).double(), labels


def loop_vote(bank, bank_labels, query, k, weight):
    """k-NN of one query in plain Python: (total weight, summed similarity, smaller label) decides."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    near = sorted(((cosine(item, query), -i) for i, item in enumerate(bank)), reverse=True)[:k]
    total, summed = {}, {}
    for similarity, minus in near:
        label = bank_labels[-minus]
        total[label] = total.get(label, 0.0) + weight(similarity)
        summed[label] = summed.get(label, 0.0) + similarity
    return max(total, key=lambda label: (total[label], summed[label], -label))


@pytest.mark.parametrize("k", [1, 2, 4, 5, 12, 30])
@pytest.mark.parametrize("weighting", ["uniform", "dino"])
def test_predictions_equal_plain_loops(k, weighting):
    (bank, labels), (queries, _) = clusters(10), clusters(15, spread=2.0, seed=1)
    weight = (lambda s: 1.0) if weighting == "uniform" else (lambda s: math.exp(s / 0.2))
    expected = [loop_vote(bank.tolist(), labels.tolist(), query, k, weight) for query in queries.tolist()]
    assert knn_predict(bank, labels, queries, k, weighting=weighting, temperature=0.2).tolist() == expected


def test_one_neighbour_and_two_classes_equal_scikit_learn():
    (bank, labels), (queries, truth) = clusters(20, classes=(0, 4)), clusters(30, classes=(0, 4), spread=2.0, seed=2)
    for k in (1, 3, 9):  # an odd vote between two classes has no ties
        oracle = KNeighborsClassifier(k, metric="cosine").fit(bank.numpy(), labels.numpy())
        assert knn_predict(bank, labels, queries, k).tolist() == oracle.predict(queries.numpy()).tolist()
        assert knn_accuracy(bank, labels, queries, truth, k) == pytest.approx(oracle.score(queries.numpy(), truth))


def test_a_tie_goes_to_the_larger_summed_similarity_not_to_the_smaller_label():
    bank = torch.tensor([[1.0, 0.5], [1.0, 0.6], [1.0, 0.0], [1.0, 0.9]])
    assert knn_predict(bank, torch.tensor([1, 1, 5, 5]), torch.tensor([[1.0, 0.5]]), 4).tolist() == [1]
    assert knn_predict(bank, torch.tensor([5, 5, 1, 1]), torch.tensor([[1.0, 0.5]]), 4).tolist() == [5]


def test_equally_similar_items_are_taken_in_bank_order():
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    for labels in ([9, 2, 1, 0], [9, 0, 1, 2]):
        assert knn_predict(bank, torch.tensor(labels), torch.tensor([[2.0, 0.0]]), 1).tolist() == [labels[1]]


def test_dino_can_outvote_the_majority_and_survives_a_tiny_temperature():
    bank = torch.tensor([[1.0, 0.0], [0.7, 0.7], [0.7, 0.7]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank, labels, query, 3).item() == 1
    for temperature in (0.07, 1e-4):
        assert knn_predict(bank, labels, query, 3, weighting="dino", temperature=temperature).item() == 0


def test_lengths_do_not_matter_and_queries_are_independent(monkeypatch):
    (bank, labels), (queries, _) = clusters(10), clusters(10, spread=2.0, seed=3)
    expected = knn_predict(bank, labels, queries, 5)
    scale = torch.arange(1, len(bank) + 1)[:, None]
    assert torch.equal(knn_predict(bank * scale, labels, queries * 7, 5), expected)
    monkeypatch.setattr("metalora.knn.QUERIES_AT_ONCE", 4)
    assert torch.equal(knn_predict(bank, labels, queries, 5), expected)


def test_nearest_class_mean_equals_a_plain_loop():
    (bank, labels), (queries, truth) = clusters(6), clusters(20, spread=2.0, seed=4)
    unit = bank.numpy() / np.linalg.norm(bank.numpy(), axis=1, keepdims=True)
    right = 0
    for query, label in zip(queries.numpy(), truth.tolist(), strict=True):
        cosine = {}
        for name in set(labels.tolist()):
            mean = np.mean([u for u, other in zip(unit, labels.tolist(), strict=True) if other == name], axis=0)
            cosine[name] = mean @ query / np.linalg.norm(mean)
        right += max(cosine, key=cosine.get) == label
    assert nearest_class_mean_accuracy(bank, labels, queries, truth) == pytest.approx(right / len(truth))


def test_linear_probe_learns_what_is_linear_and_ignores_constant_channels():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=g) * torch.tensor([1.0, 100.0, 0.01, 0.0])
    y = (x[:, 0] + x[:, 1] / 100 > 0).long() + 4
    assert linear_probe_accuracy(x[:200], y[:200], x[200:], y[200:]) > 0.93
    assert linear_probe_accuracy(x[:200], y[:200], x[200:], 9 - y[200:]) < 0.07


def test_a_query_class_outside_of_the_bank_counts_as_wrong():
    bank, labels = clusters(6, spread=0.01)
    truth = torch.where(labels == 3, 100, labels)
    assert knn_accuracy(bank, labels, bank, truth, 1) == pytest.approx(2 / 3)
    assert nearest_class_mean_accuracy(bank, labels, bank, truth) == pytest.approx(2 / 3)


def test_lda_finds_the_one_useful_direction_among_loud_ones():
    g = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(400, 20, generator=g)
    y = torch.arange(400) % 4
    x[:, 3:5] = torch.randn(400, 2, generator=g) * 0.1 + torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])[y]
    project = lda_transform(x[:200], y[:200])
    assert project(x[200:]).shape == (200, 3) and project(x).dtype == torch.float32
    assert knn_accuracy(project(x[:200]), y[:200], project(x[200:]), y[200:], 5) > 0.95
    assert knn_accuracy(x[:200], y[:200], x[200:], y[200:], 5) < 0.5
    assert project(x[:200]).mean(0).abs().max() < 1e-4


def test_lda_maximises_the_ratio_of_scatters_when_samples_abound():
    """With 6000 samples shrinkage vanishes: compare with the textbook's direction Sw^-1 (mean_1 - mean_0)."""
    g = torch.Generator().manual_seed(1)
    mix = torch.tensor([[1.0, 0.8, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]).double()
    y = torch.arange(6000) % 2
    x = torch.randn(6000, 3, generator=g).double() @ mix + y[:, None] * torch.tensor([1.0, -0.5, 0.3])
    within = sum(np.cov(x[y == c].numpy().T) for c in (0, 1)) / 2
    direction = np.linalg.solve(within, (x[y == 1].mean(0) - x[y == 0].mean(0)).numpy())
    ours = lda_transform(x, y)(x).numpy()[:, 0]
    assert abs(np.corrcoef(ours, x.numpy() @ direction)[0, 1]) > 0.9999


@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 3, 3), (2, 1, 1), (20, 1, 5), (1, 2, 40)])
def test_lda_is_finite_for_few_samples_in_many_channels(counts):
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([c for c, count in enumerate(counts) for _ in range(count)])
    bank = torch.randn(len(labels), 64, generator=g)
    bank[:, :3] = 1.5  # constant channels
    bank[:, 10] = bank[:, 11]  # and twice the same one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projected = lda_transform(bank, labels)(torch.randn(9, 64, generator=g))
    assert projected.shape == (9, 2) and projected.isfinite().all() and projected.abs().max() < 1e4


def test_lda_takes_items_that_occur_several_times():
    (bank, labels), (queries, truth) = clusters(4, d=12, spread=0.3), clusters(20, d=12, spread=0.3, seed=7)
    first = [index for label in (3, 7, 11) for index in (labels == label).nonzero()[:2, 0].tolist()]
    project = lda_transform(bank[first * 3], labels[first * 3])  # three times the same two items of each class
    projected = project(queries)
    assert projected.isfinite().all() and projected.abs().max() < 1e3
    assert knn_accuracy(project(bank[first]), labels[first], projected, truth, 1) > 0.9


X, Y = clusters(4)
NAN = X.clone()
NAN[2, 1] = torch.nan
INF = X.clone()
INF[0, 0] = torch.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_predict(X, Y, X, 0), "k must be at least 1, not 0"),
        (lambda: knn_predict(X, Y, X, 13), "k = 13 neighbours wanted, but only 12"),
        (lambda: knn_predict(NAN, Y, X, 1), "bank: 1 of 12 features are NaN"),
        (lambda: knn_predict(X, Y, INF, 1), "queries: 1 of 12 features are NaN or infinite"),
        (lambda: knn_predict(X, Y[:-1], X, 1), "bank: 12 features but labels of shape"),
        (lambda: knn_accuracy(X, Y, X, Y[1:], 1), "queries: 12 features but labels"),
        (lambda: knn_predict(X, Y.double(), X, 1), "labels must be integers"),
        (lambda: knn_predict(X, Y, X[:, 1:], 1), "queries have 4 channels, the bank has 5"),
        (lambda: knn_predict(X, Y, X[0], 1), "queries: features must have shape"),
        (lambda: knn_predict(X, Y, X, 1, weighting="rank"), "weighting 'rank' is unknown .known: dino, uniform"),
        (lambda: knn_predict(X, Y, X, 1, weighting="dino", temperature=0.0), "temperature must be positive"),
        (lambda: lda_transform(X, torch.full_like(Y, 3)), "LDA needs a bank of at least 2 classes.* class 3"),
        (lambda: lda_transform(X[:3], Y[:3]), "LDA needs variance within a class"),
        (lambda: lda_transform(NAN, Y), "bank: 1 of 12"),
        (lambda: lda_transform(X, Y)(X[:, 1:]), "queries have 4 channels"),
        (lambda: linear_probe_accuracy(X, torch.zeros_like(Y), X, Y), "a linear probe needs"),
        (lambda: nearest_class_mean_accuracy(X, Y[:-1], X, Y), "bank: 12 features"),
    ],
)
def test_errors_are_one_line_and_name_the_thing(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weighting", ("uniform", "dino"))
def test_many_banks_predict_what_each_predicts_alone(weighting):
    draw = torch.Generator().manual_seed(0)
    sizes = [(9, 4, 3), (9, 4, 3), (9, 4, 1), (5, 2, 3), (9, 4, 3)]  # items, channels and queries of each bank
    banks = [torch.randn(n, d, generator=draw) for n, d, _ in sizes]
    labels = [torch.randint(3, (n,), generator=draw) + 10 * number for number, (n, _, _) in enumerate(sizes)]
    queries = [torch.randn(m, d, generator=draw) for _, d, m in sizes]
    together = knn_predict_many(banks, labels, queries, 3, weighting=weighting)
    alone = [knn_predict(*one, 3, weighting=weighting) for one in zip(banks, labels, queries, strict=True)]
    assert all(torch.equal(left, right) for left, right in zip(together, alone, strict=True))
    with pytest.raises(ValueError, match="5 banks, 5 sets of labels and 4 sets of queries"):
        knn_predict_many(banks, labels, queries[1:], 3)
    with pytest.raises(ValueError, match="k = 6 neighbours wanted, but only 5 bank items are available"):
        knn_predict_many(banks, labels, queries, 6)
    with pytest.raises(ValueError, match="bank 1: 1 of 9 features are NaN"):
        knn_predict_many(
            [banks[0], torch.cat([banks[1][:8], torch.full((1, 4), torch.nan)])], labels[:2], queries[:2], 1
        )
