"""Truncation by importance to the loss, against finite differences and projections of the dense tensor."""

import numpy as np
import pytest
import torch

from metalora.tensornet.truncation.importance import (
    away_from_root,
    bond_gradients,
    orthonormal_with_gradients,
    score_tree,
)
from metalora.tensornet.truncation.truncate import truncate

# name -> (bonds of every factor, their open sizes, ranks, smaller ranks, bond -> the factors on its side away from the
# factor with the most bonds, in the order of the truncation)
TREES = {
    "matrix": ("a | a", (7, 6), dict(a=4), dict(a=2), dict(a=[1])),
    "chain": ("a | a b | b", (6, 3, 5), dict(a=4, b=3), dict(a=2, b=2), dict(b=[2], a=[0])),
    "chain, declared backwards": ("b | a b | a", (5, 3, 6), dict(a=4, b=3), dict(a=2, b=2), dict(a=[2], b=[0])),
    "chain, middle declared last": ("b | a | b a", (5, 6, 3), dict(a=4, b=3), dict(a=3, b=2), dict(a=[1], b=[0])),
    "tucker": (
        "a | b | c | a b c", (6, 5, 4, 1), dict(a=4, b=3, c=3), dict(a=2, b=2, c=2), dict(c=[2], b=[1], a=[0])
    ),
    "wider than it needs": ("a | a b | b", (2, 2, 6), dict(a=3, b=5), dict(a=2, b=2), dict(b=[2], a=[0])),
    "chain of five": (
        "a | a b | b c | d c | d", (5, 2, 3, 2, 4), dict(a=3, b=4, c=4, d=3), dict(a=2, b=2, c=3, d=2),
        dict(d=[4], c=[3, 4], b=[2, 3, 4], a=[0]),
    ),
}  # fmt: skip
STARS = [name for name in TREES if name != "chain of five"]  # every bond ends at a leaf
COLUMNS = ("r | r | r", (5, 4, 3))
every_tree = pytest.mark.parametrize("name", TREES)


def parsed(spec):
    return tuple(tuple(bonds.split()) for bonds in spec.split("|"))


def random_factors(factor_bonds, sizes, ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, *[ranks[bond] for bond in bonds], generator=generator, dtype=torch.float64)
        for bonds, n in zip(factor_bonds, sizes, strict=True)
    ]


def dense(factor_bonds, tensors):
    """The tensor, with an axis for every factor."""
    open_letters = "ABCDEF"[: len(tensors)]
    inputs = [letter + "".join(bonds) for letter, bonds in zip(open_letters, factor_bonds, strict=True)]
    return torch.einsum(",".join(inputs) + "->" + open_letters, *tensors)


def loss_of(tensor, batch):
    """A loss that is not linear, of the dense tensor and a batch."""
    weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)
    return torch.sin(tensor * weights).sum()


def recorded(factor_bonds, tensors, loss, batches=3):
    """Bond -> dL/dM of every batch, by automatic differentiation of the factors."""
    of_batches = []
    for batch in range(batches):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        gradients = torch.autograd.grad(loss(dense(factor_bonds, leaves), batch), leaves)
        of_batches.append(bond_gradients(factor_bonds, tensors, gradients))
    return {bond: torch.stack([matrices[bond] for matrices in of_batches]) for bond in of_batches[0]}


def unfolded(tensor, side):
    """(one side of a bond, the other side), and the way back."""
    order = [*side, *(axis for axis in range(tensor.ndim) if axis not in side)]
    permuted = tensor.permute(order)
    rows = int(np.prod([tensor.shape[axis] for axis in side]))

    def folded(matrix):
        return matrix.reshape(permuted.shape).permute([order.index(axis) for axis in range(tensor.ndim)])

    return permuted.reshape(rows, -1), folded


def measured_scores(whole, left_over, side, loss, batches=3, step=1e-5):
    """(scores, values, vectors (side, rank)) of the singular values of what is left over of a tensor.

    The score is measured on the whole tensor: the mean over the batches of the derivative of the loss as its part along
    a singular vector grows.
    """
    u, s, _ = (part.numpy() for part in torch.linalg.svd(unfolded(left_over, side)[0], full_matrices=False))
    rank = int((s > 1e-9 * s[0]).sum())
    matrix, folded = unfolded(whole, side)
    scores = []
    for j in range(rank):
        direction = step * folded(torch.tensor(np.outer(u[:, j], u[:, j])) @ matrix)
        changes = [float(loss(whole + direction, k) - loss(whole - direction, k)) for k in range(batches)]
        scores.append(np.mean(np.abs(changes)) / (2 * step))
    return np.array(scores), s[:rank], u[:, :rank]


@every_tree
def test_the_scores_are_finite_differences_of_the_loss(name):
    spec, sizes, ranks, _, sides = TREES[name]
    factor_bonds = parsed(spec)
    tensors = random_factors(factor_bonds, sizes, ranks)
    whole, gradients = dense(factor_bonds, tensors), recorded(factor_bonds, tensors, loss_of)
    for root in range(len(factor_bonds)):
        away = away_from_root(factor_bonds, gradients, root)
        orthonormal = orthonormal_with_gradients(factor_bonds, tensors, away, root)
        for bond, scored in score_tree(factor_bonds, *orthonormal, root).items():
            wanted, singular_values, _ = measured_scores(whole, whole, sides[bond], loss_of)
            order = np.argsort(-wanted)
            np.testing.assert_allclose(scored.scores[: len(wanted)], wanted[order], rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(scored.values[: len(wanted)], singular_values[order], rtol=1e-9)
            assert not scored.scores[len(wanted) :].any()


def test_the_score_of_a_column_is_the_derivative_with_respect_to_its_weight():
    factor_bonds, sizes = parsed(COLUMNS[0]), COLUMNS[1]
    tensors = random_factors(factor_bonds, sizes, {"r": 4})
    matrices = recorded(factor_bonds, tensors, loss_of)["r"]
    for column in range(4):
        for batch in range(3):
            scaled = []
            for step in (1e-5, -1e-5):
                weights = torch.ones(4, dtype=torch.float64)
                weights[column] += step
                scaled.append(
                    float(loss_of(dense(factor_bonds, [tensors[0], tensors[1] * weights, tensors[2]]), batch))
                )
            assert float(matrices[batch, column, column]) == pytest.approx((scaled[0] - scaled[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", STARS)
def test_what_is_kept_is_a_projection_of_the_tensor(name):
    """Bond by bond, the dense tensor is projected on the vectors with the highest scores."""
    spec, sizes, ranks, smaller, sides = TREES[name]
    factor_bonds = parsed(spec)
    tensors = random_factors(factor_bonds, sizes, ranks, seed=1)
    whole = left_over = dense(factor_bonds, tensors)
    truncated = truncate(factor_bonds, tensors, ranks=smaller, gradients=recorded(factor_bonds, tensors, loss_of))
    assert truncated.ranks == smaller
    for bond, side in sides.items():
        scores, _, vectors = measured_scores(whole, left_over, side, loss_of)
        kept = torch.tensor(vectors[:, np.argsort(-scores)[: smaller[bond]]])
        matrix, folded = unfolded(left_over, side)
        left_over = folded(kept @ (kept.T @ matrix))
    torch.testing.assert_close(dense(factor_bonds, truncated.tensors), left_over, rtol=1e-9, atol=1e-9)


@every_tree
def test_the_discarded_squares_add_up_to_that_of_the_error(name):
    spec, sizes, ranks, smaller, _ = TREES[name]
    factor_bonds = parsed(spec)
    for seed in range(3):
        tensors = random_factors(factor_bonds, sizes, ranks, seed)
        gradients = recorded(factor_bonds, tensors, loss_of)
        whole = dense(factor_bonds, tensors)
        for target in (dict(ranks=smaller), dict(tolerance=0.7), dict(tolerance=0.2)):
            truncated = truncate(factor_bonds, tensors, gradients=gradients, **target)
            error = float((dense(factor_bonds, truncated.tensors) - whole).norm())
            assert error == pytest.approx(truncated.bound, rel=1e-9, abs=1e-9)
            assert error <= target.get("tolerance", np.inf) * float(whole.norm())


def train_of_two(weights):
    """A train of the sum of two orthonormal rank-one tensors with these weights, (bonds, cores)."""
    first, middle, last = torch.eye(4)[:, :2].double(), torch.eye(3)[:, :2].double(), torch.eye(5)[:, :2].double()
    core = torch.einsum("na,ab,a->nab", middle, torch.eye(2).double(), torch.tensor(weights).double())
    return parsed("a | a b | b"), [first, core, last]


@pytest.mark.parametrize("target", (dict(ranks=dict(a=1, b=1)), dict(budget=12)), ids=str)
def test_a_small_value_that_matters_stays_and_a_large_one_that_does_not_goes(target):
    factor_bonds, tensors = train_of_two((10.0, 1.0))

    def loss(tensor, batch):
        return (tensor[1, 1, 1] - 1.0 - 0.1 * (batch + 1)) ** 2  # of the small component alone

    gradients = recorded(factor_bonds, tensors, loss)
    before = [float(loss(dense(factor_bonds, tensors), batch)) for batch in range(3)]
    by_loss = dense(factor_bonds, truncate(factor_bonds, tensors, gradients=gradients, **target).tensors)
    assert [float(loss(by_loss, batch)) for batch in range(3)] == pytest.approx(before, abs=1e-12)
    small_component = torch.zeros(4, 3, 5).double()
    small_component[1, 1, 1] = 1.0
    torch.testing.assert_close(by_loss, small_component, rtol=1e-12, atol=1e-12)
    by_size = dense(factor_bonds, truncate(factor_bonds, tensors, ranks=dict(a=1, b=1)).tensors)
    assert float(loss(by_size, 0)) == pytest.approx(1.1**2) and before[0] == pytest.approx(0.1**2)


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_with_uniform_sensitivity_it_is_the_plain_truncation(rank):
    """The loss <U V', M> has the derivative one with respect to every singular value of M = U S V'."""
    factor_bonds = parsed("r | r")
    tensors = random_factors(factor_bonds, (7, 6), {"r": 4})
    u, _, v = np.linalg.svd((tensors[0] @ tensors[1].T).numpy(), full_matrices=False)
    polar = torch.tensor(u[:, :4] @ v[:4])
    gradients = recorded(factor_bonds, tensors, lambda tensor, batch: (tensor * polar).sum())
    plain = truncate(factor_bonds, tensors, ranks={"r": rank})
    by_importance = truncate(factor_bonds, tensors, ranks={"r": rank}, gradients=gradients)
    for ours, theirs in zip(by_importance.tensors, plain.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("budget", (20, 40, 70))
@pytest.mark.parametrize("name", ("chain", "tucker"))
def test_a_budget_goes_to_the_highest_scores_of_all_bonds(name, budget):
    spec, sizes, ranks, _, sides = TREES[name]
    factor_bonds = parsed(spec)
    tensors = random_factors(factor_bonds, sizes, ranks, seed=2)
    whole = dense(factor_bonds, tensors)
    truncated = truncate(factor_bonds, tensors, budget=budget, gradients=recorded(factor_bonds, tensors, loss_of))
    offers = []
    for bond, side in sides.items():
        scores = np.sort(measured_scores(whole, whole, side, loss_of)[0])[::-1]
        offers += [(score, bond) for score in scores[1:]]
    wanted = dict.fromkeys(sides, 1)
    for _, bond in sorted(offers, reverse=True):
        larger = wanted | {bond: wanted[bond] + 1}
        numbers = sum(n * np.prod([larger[b] for b in bonds]) for n, bonds in zip(sizes, factor_bonds, strict=True))
        wanted = larger if numbers <= budget else wanted
    assert truncated.ranks == wanted
    assert sum(tensor.numel() for tensor in truncated.tensors) <= budget


def test_columns_stay_as_they_are():
    factor_bonds, sizes = parsed(COLUMNS[0]), COLUMNS[1]
    tensors = random_factors(factor_bonds, sizes, {"r": 4})
    gradients = {"r": torch.diag(torch.tensor([1.0, 3.0, 0.0, -2.0], dtype=torch.float64))[None]}
    truncated = truncate(factor_bonds, tensors, ranks={"r": 2}, gradients=gradients)
    wanted = dense(factor_bonds, [tensor[:, [1, 3]] for tensor in tensors])
    torch.testing.assert_close(dense(factor_bonds, truncated.tensors), wanted, rtol=1e-12, atol=1e-12)


REFUSED = {
    "ring": ("p q | q r | r p", dict(ranks=dict(p=1)), "a ring has no singular values"),
    "paper": ("p | p q | q", dict(ranks=dict(p=1), mode="paper"), "importance needs mode 'round'"),
    "columns": ("p | p | p", dict(tolerance=0.1), "chosen by importance for a rank or a budget"),
}


@pytest.mark.parametrize("spec, options, message", REFUSED.values(), ids=REFUSED)
def test_what_has_no_importance(spec, options, message):
    factor_bonds = parsed(spec)
    tensors = random_factors(factor_bonds, (4, 4, 4), dict(p=2, q=2, r=2))
    gradients = {bond: torch.ones(1, 2, 2, dtype=torch.float64) for bond in "pqr"}
    with pytest.raises(ValueError, match=message):
        truncate(factor_bonds, tensors, gradients=gradients, **options)
