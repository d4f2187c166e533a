"""Losses against the papers' formulas, written as plain loops."""

from math import exp, log

import pytest
import torch

from metalora.training.losses import (
    distillation_loss,
    matching_loss,
    prototypical_loss,
    supervised_contrastive_loss,
)

T = 0.3


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def matching_by_loops(support, support_y, query, query_y):
    """Vinyals et al. 2016, equations 1 and 2: P(y | q) = sum_i a(q, x_i) y_i, a the softmax of the cosines."""
    total = 0.0
    for q, y in zip(query, query_y, strict=True):
        weights = [exp(cosine(q, s) / T) for s in support]
        right = sum(w for w, label in zip(weights, support_y, strict=True) if label == y)
        total -= log(right / sum(weights))
    return total / len(query)


def prototypical_by_loops(support, support_y, query, query_y):
    """Snell et al. 2017, equations 1 and 2, with cosine in place of -distance and prototypes of unit vectors."""
    classes = sorted(set(support_y))
    prototypes = {}
    for c in classes:
        members = [s for s, label in zip(support, support_y, strict=True) if label == c]
        units = [[x / sum(v * v for v in s) ** 0.5 for x in s] for s in members]
        prototypes[c] = [sum(column) / len(units) for column in zip(*units, strict=True)]
    total = 0.0
    for q, y in zip(query, query_y, strict=True):
        weights = {c: exp(cosine(q, prototypes[c]) / T) for c in classes}
        total -= log(weights[y] / sum(weights.values()))
    return total / len(query)


def contrastive_by_loops(features, labels):
    """Khosla et al. 2020, equation 2 (L_out): P(i) the others of i's class, A(i) all others."""
    terms = []
    for i, anchor in enumerate(features):
        others = [a for a in range(len(features)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            total = sum(exp(cosine(anchor, features[a]) / T) for a in others)
            logs = [log(exp(cosine(anchor, features[p]) / T) / total) for p in positives]
            terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


def distillation_by_loops(student, teacher):
    return sum(1 - cosine(s, t) for s, t in zip(student, teacher, strict=True)) / len(student)


LABELS = {
    "balanced": ([0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1]),
    "a class of one": ([0, 0, 0, 0, 0, 0, 0, 7], [7, 0, 7, 0, 0]),
    "labels with gaps": ([9, 4, 4, 9, -1, -1, 4, 9], [-1, 4, 9, 9, 9]),
}
EPISODIC = {"matching": (matching_loss, matching_by_loops), "prototypical": (prototypical_loss, prototypical_by_loops)}


def drawn(n, seed=0):
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("ours, oracle", EPISODIC.values(), ids=EPISODIC)
def test_episodic_losses_are_the_papers(ours, oracle, labels):
    support, query = drawn(8), drawn(5, 1)
    value = ours(support, torch.tensor(labels[0]), query, torch.tensor(labels[1]), T)
    assert abs(float(value) - oracle(support.tolist(), labels[0], query.tolist(), labels[1])) < 1e-12


@pytest.mark.parametrize("labels", [labels for labels, _ in LABELS.values()], ids=LABELS)
def test_contrastive_loss_is_the_papers(labels):
    features = drawn(8)
    value = supervised_contrastive_loss(features, torch.tensor(labels), T)
    assert abs(float(value) - contrastive_by_loops(features.tolist(), labels)) < 1e-12


def test_distillation_loss_is_the_mean_cosine_distance_and_teaches_one_way():
    student, teacher = drawn(5).requires_grad_(), drawn(5, 1).requires_grad_()
    loss = distillation_loss(student, teacher)
    assert abs(float(loss.detach()) - distillation_by_loops(student.tolist(), teacher.tolist())) < 1e-12
    loss.backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    assert abs(float(distillation_loss(student, 3 * student).detach())) < 1e-12


@pytest.mark.parametrize("ours", [ours for ours, _ in EPISODIC.values()], ids=EPISODIC)
def test_episodic_losses_ignore_order(ours):
    labels = LABELS["labels with gaps"]
    support, query = drawn(8), drawn(5, 1)
    support_y, query_y = map(torch.tensor, labels)
    a, b = torch.randperm(8), torch.randperm(5)
    value = ours(support, support_y, query, query_y)
    assert abs(float(value - ours(support[a], support_y[a], query[b], query_y[b]))) < 1e-12


def test_pairwise_losses_ignore_order():
    features, labels, order = drawn(8), torch.tensor(LABELS["balanced"][0]), torch.randperm(8)
    a, b = (supervised_contrastive_loss(f, y) for f, y in ((features, labels), (features[order], labels[order])))
    assert abs(float(a - b)) < 1e-12
    a, b = (distillation_loss(f, g) for f, g in ((features, drawn(8, 1)), (features[order], drawn(8, 1)[order])))
    assert abs(float(a - b)) < 1e-12


@pytest.mark.parametrize("temperature", [0.1, 0.001])
@pytest.mark.parametrize("ours", [ours for ours, _ in EPISODIC.values()], ids=EPISODIC)
def test_gradients_are_finite_for_a_rare_class_far_away(ours, temperature):
    """The only support image of the query's class is its opposite, all others are its equals: the worst there is."""
    query = torch.ones(1, 6).requires_grad_()
    support = torch.ones(8, 6)
    support[7] = -1
    support.requires_grad_()
    loss = ours(support, torch.tensor(LABELS["a class of one"][0]), query, torch.tensor([7]), temperature)
    loss.backward()
    assert torch.isfinite(loss) and abs(float(loss.detach()) * temperature - 2) < 1
    assert torch.isfinite(query.grad).all() and torch.isfinite(support.grad).all()


def test_contrastive_gradients_are_finite_beside_anchors_without_a_positive():
    features = drawn(4).requires_grad_()
    loss = supervised_contrastive_loss(features, torch.tensor([0, 0, 1, 2]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()
    assert features.grad[2:].abs().max() > 0  # without a positive they still repel


def test_a_zero_feature_gives_finite_gradients():
    features = drawn(4)
    features[0] = 0
    features.requires_grad_()
    supervised_contrastive_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(features.grad).all()


def test_contrastive_loss_without_any_pair_is_refused():
    with pytest.raises(ValueError, match="no two examples share a label"):
        supervised_contrastive_loss(drawn(3), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("ours", [ours for ours, _ in EPISODIC.values()], ids=EPISODIC)
@pytest.mark.parametrize("label", [-1, 1, 3])
def test_a_query_of_an_unknown_class_is_refused(ours, label):
    with pytest.raises(ValueError, match=f"query label {label} does not occur"):
        ours(drawn(3), torch.tensor([0, 0, 2]), drawn(2, 1), torch.tensor([0, label]))
