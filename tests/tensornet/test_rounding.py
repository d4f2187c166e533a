"""Rounding of trains against dense singular value decompositions."""

from math import sqrt

import pytest
import torch

from metalora.tensornet.truncation.rounding import feasible_train_ranks, ranks_for_budget, round_train, singular_values
from metalora.tensornet.truncation.rounding import train_norm as norm


def random_train(seed, sizes=(12, 5, 3, 10), ranks=(6, 7, 5), decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    ends = [1, *ranks, 1]
    cores = [torch.randn(ends[k], n, ends[k + 1], generator=generator).double() for k, n in enumerate(sizes)]
    # unequal singular values, and a gauge that no algorithm would choose
    return [core * decay ** torch.arange(core.shape[2]) for core in cores]


def dense(train):
    out = train[0]
    for core in train[1:]:
        out = torch.tensordot(out, core, 1)
    return out.squeeze(0).squeeze(-1)


def error(train, cores):
    return float((dense(train) - dense(cores)).norm())


@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("mode", ("round", "paper"))
def test_a_sweep_without_truncation_changes_nothing(mode, gauge):
    for seed in range(20):
        train = random_train(seed)
        rounded = round_train(train, mode=mode, gauge=gauge)
        assert error(train, rounded.cores) < 1e-10 * norm(train)
        assert rounded.ranks == (6, 7, 5) and rounded.bound == pytest.approx(0, abs=1e-10)


def test_round_is_never_worse_than_paper_and_within_its_bound():
    """On two hundred random trains; the bound is sqrt(d - 1) times the best possible error."""
    better = 0
    for seed in range(200):
        train = random_train(seed, decay=0.3 + 0.7 * (seed % 10) / 10)
        ranks = (2 + seed % 4, 3, 2)
        ours, paper = (round_train(train, ranks=ranks, mode=mode) for mode in ("round", "paper"))
        errors = error(train, ours.cores), error(train, paper.cores)
        assert errors[0] <= errors[1] * (1 + 1e-9)
        assert errors[0] <= ours.bound * (1 + 1e-9)
        best = max(
            float(torch.linalg.svdvals(dense(train).reshape(n, -1))[r:].norm())
            for n, r in zip((12, 60, 180), ours.ranks, strict=True)
        )
        assert best * (1 - 1e-9) <= errors[0] <= sqrt(3) * best * (1 + 1e-9)
        better += errors[0] < errors[1] * (1 - 1e-6)
    assert better > 100  # the non-orthogonal environment of the paper's first pass costs something


def test_the_paper_s_algorithm_as_printed():
    """Merge, SVD, split: left to right, then right to left, on dense matrices."""
    train, rank = random_train(3), 3
    cores = [core.clone() for core in train]

    def tsvd(matrix):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]

    for i in range(3):
        a, b = cores[i], cores[i + 1]
        u, s, v = tsvd(torch.tensordot(a, b, 1).reshape(a.shape[0] * a.shape[1], -1))
        cores[i], cores[i + 1] = u.reshape(*a.shape[:2], -1), (s[:, None] * v).reshape(-1, *b.shape[1:])
    for i in range(3, 0, -1):
        a, b = cores[i - 1], cores[i]
        u, s, v = tsvd(torch.tensordot(a, b, 1).reshape(a.shape[0] * a.shape[1], -1))
        cores[i - 1], cores[i] = (u * s).reshape(*a.shape[:2], -1), v.reshape(-1, *b.shape[1:])
    rounded = round_train(train, ranks=(rank,) * 3, mode="paper", gauge="right")
    torch.testing.assert_close(dense(rounded.cores), dense(cores), rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(rounded.cores, cores, strict=True):
        torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-8, atol=1e-8)  # singular vectors up to their sign


def test_gauges_put_the_norm_where_they_say():
    train = random_train(1)
    left, right, balanced = (round_train(train, gauge=gauge).cores for gauge in ("left", "right", "balanced"))
    for core in left[:-1]:
        matrix = core.flatten(0, 1)
        torch.testing.assert_close(matrix.mT @ matrix, torch.eye(core.shape[2]).double())
    for core in right[1:]:
        matrix = core.flatten(1)
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(core.shape[0]).double())
    assert float(left[-1].norm()) == pytest.approx(norm(train)) == pytest.approx(float(right[0].norm()))
    norms = [float(core.norm()) for core in balanced]
    assert max(norms) < norm(train) / 5 and max(norms) / min(norms) < 10


def test_a_tolerance_is_kept_with_the_fewest_ranks_it_allows():
    for seed in range(20):
        train = random_train(seed)
        for tolerance in (1e-1, 1e-2, 1e-3):
            rounded = round_train(train, tolerance=tolerance)
            assert error(train, rounded.cores) <= tolerance * norm(train)
        assert round_train(train, tolerance=0.3).ranks < round_train(train, tolerance=1e-3).ranks


def test_a_budget_is_used_and_not_exceeded():
    train = random_train(0)
    num_params = sum(core.numel() for core in train)
    errors = []
    for budget in (60, 100, 200, num_params):
        rounded = round_train(train, budget=budget)
        assert sum(core.numel() for core in rounded.cores) <= budget
        errors.append(error(train, rounded.cores))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9 * norm(train)
    assert ranks_for_budget(train, num_params) == (6, 7, 5)


def test_singular_values_are_those_of_the_unfolded_tensor():
    train = random_train(5)
    for bond, n, rounded in zip((6, 7, 5), (12, 60, 180), singular_values(train), strict=True):
        torch.testing.assert_close(rounded, torch.linalg.svdvals(dense(train).reshape(n, -1))[:bond])


@pytest.mark.parametrize(
    "sizes, ranks, want",
    [
        ((12, 5, 3, 10), (6, 7, 5), (6, 7, 5)),
        ((2, 5, 3, 10), (6, 7, 20), (2, 7, 10)),
        ((8, 2, 8), (1, 8), (1, 2)),
        ((8, 2, 8), (8, 1), (2, 1)),
    ],
)
def test_feasible_ranks(sizes, ranks, want):
    assert feasible_train_ranks(sizes, ranks) == want


def test_equal_input_gives_equal_output_in_the_dtype_of_the_cores():
    train = [core.to(torch.bfloat16) for core in random_train(2)]
    first, second = round_train(train, ranks=(3, 3, 3)), round_train([core.clone() for core in train], ranks=(3, 3, 3))
    assert all(torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(first.cores, second.cores, strict=True))
    exact = round_train([core.double() for core in train], ranks=(3, 3, 3))
    assert error(exact.cores, [core.double() for core in first.cores]) < 2e-2 * norm(exact.cores)
    for core in exact.cores[:-1]:
        columns = core.flatten(0, 1)
        assert (columns.gather(0, columns.abs().argmax(0, keepdim=True)) > 0).sum() >= columns.shape[1] - 1


BAD = {
    "a zero train": (lambda t: round_train([core * 0 for core in t]), "the train is zero"),
    "not finite": (lambda t: round_train([t[0] / 0, *t[1:]]), "not finite"),
    "ranks that grow": (lambda t: round_train(t, ranks=(7, 7, 5)), r"ranks \[7, 7, 5\] grow above \[6, 7, 5\]"),
    "too few ranks": (lambda t: round_train(t, ranks=(3, 3)), "expected 3 numbers of at least 1"),
    "rank zero": (lambda t: round_train(t, ranks=(3, 0, 3)), "expected 3 numbers of at least 1"),
    "a small budget": (lambda t: round_train(t, budget=29), "a budget of 29 numbers is below 30"),
    "two targets": (lambda t: round_train(t, ranks=(3, 3, 3), budget=90), "give one of them"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_train(0))
