"""Tests, corrections, bootstrap and variance shares against scipy, textbook values and plain loops."""

import math
import random

import numpy as np
import pytest
import scipy.stats
import torch

from metalora_papers.statistics import (
    bootstrap_interval,
    holm,
    is_significant,
    margin_of_error,
    paired_t_test,
    right_counts,
    trials,
    variance_share,
)

# Student (1908): hours of sleep gained by ten patients with two drugs; t = -4.0621, p = 0.002833.
SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_t_test_of_student_s_own_data():
    found = paired_t_test(*SLEEP)
    assert (round(found.statistic, 4), round(found.p_value, 6), found.n) == (-4.0621, 0.002833, 10)
    assert found.difference == pytest.approx(-1.58)


@pytest.mark.parametrize("n", [2, 3, 6, 30])
def test_t_test_equals_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    expected, found = scipy.stats.ttest_rel(a, b), paired_t_test(a, b)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [1, 2]),
        ([1, 2, 3], [2, 3, 4]),
        ([0.825, 0.625], [0.8, 0.6]),  # 0.025 and 0.02499999999999999
        ([float(np.float32(x)) for x in (0.81, 0.61, 0.71)], [0.8, 0.6, 0.7]),  # 0.01 but for 2e-8
    ],
)
def test_equal_differences_have_no_p_value_and_no_star(a, b):
    found = paired_t_test(a, b)
    assert (found.statistic, found.p_value, found.n) == (None, None, len(a))
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-7)
    assert not is_significant(found.p_value, found.n)


def test_two_pairs_have_a_p_value_and_no_star():
    found = paired_t_test([0.9, 0.8], [0.5, 0.4001])
    assert found.p_value < 0.001 and not is_significant(found.p_value, found.n)
    assert is_significant(found.p_value, 3) and not is_significant(0.05, 3)


def test_margin_of_error_by_hand():
    # deviations from 0.6: -0.1, 0, 0.1; their squares add to 0.02; sigma = sqrt(0.02 / 2) = 0.1; 1.96 * 0.1 / sqrt(3)
    assert margin_of_error([0.5, 0.6, 0.7]) == pytest.approx(0.1131606528, abs=1e-9)


def test_margin_of_error_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(size=9)
    low, high = scipy.stats.norm.interval(0.95, scale=scipy.stats.sem(values))
    assert margin_of_error(values) == pytest.approx((high - low) / 2, rel=1e-4)  # 1.96 is rounded


def test_holm_rejects_exactly_what_the_step_down_procedure_rejects():
    rng = random.Random(0)
    for _ in range(50):
        p = {f"m{i}": rng.choice([rng.random() ** 3, 0.01, 1.0]) for i in range(rng.randint(1, 6))}
        adjusted = holm(p)
        assert list(adjusted) == list(p) and all(0 <= adjusted[name] <= 1 for name in p)
        for alpha in (0.001, 0.01, 0.05, 0.2, 0.5):
            rejected, left = set(), sorted(p, key=p.get)
            while left and p[left[0]] * len(left) <= alpha:
                rejected.add(left.pop(0))
            rejected |= {name for name in left if any(p[name] == p[other] for other in rejected)}
            assert {name for name in p if adjusted[name] <= alpha} == rejected


def test_holm_of_a_known_family():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}


def test_bootstrap_over_seeds_equals_scipy_s():
    values = np.random.default_rng(0).normal(0.7, 0.1, 12)
    found = bootstrap_interval(values, n=20000)
    oracle = scipy.stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1)
    low, high = oracle.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)  # two random draws of 20000
    assert (found.mean, found.std, found.n) == pytest.approx((values.mean(), np.std(values, ddof=1), 12))


def test_hierarchical_bootstrap_equals_a_plain_loop():
    rng = random.Random(0)
    ragged = [
        [[rng.gauss(seed, 1) for _ in range(rng.randint(2, 9))] for _ in range(rng.randint(1, 4))] for seed in range(5)
    ]

    def mean(values):
        return sum(values) / len(values)

    def drawn(values):
        return [rng.choice(values) for _ in values]

    replicates = sorted(
        mean([mean([mean(drawn(images)) for images in drawn(domains)]) for domains in drawn(ragged)])
        for _ in range(6000)
    )
    found = bootstrap_interval(ragged, level=0.9, n=6000)
    assert found.mean == pytest.approx(mean([mean([mean(images) for images in domains]) for domains in ragged]))
    assert (found.low, found.high) == pytest.approx((replicates[300], replicates[5700]), abs=0.12)  # std of 0.65


def test_each_level_of_the_bootstrap_adds_its_own_variance():
    """Means of a hierarchical resample: the variances of the levels add, each divided by the numbers above it."""
    seeds, domains, images = 4, 5, 6
    values = np.random.default_rng(0).normal(size=(seeds, domains, images))
    between_seeds = values.mean((1, 2)).var() / seeds
    between_domains = values.mean(2).var(1).mean() / (seeds * domains)
    between_images = values.var(2).mean() / (seeds * domains * images)
    found = bootstrap_interval(values, level=0.6827, n=20000)
    expected = math.sqrt(between_seeds + between_domains + between_images)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.05)  # the percentiles of a normal curve


def test_right_counts_of_a_row_resample_single_images():
    counts = right_counts("k5", [0.25, 1.0, 0.5], 4)
    assert counts == {"metric": "k5", "queries": 4, "right": [1, 4, 2]}
    assert [sum(group) / len(group) for group in trials(counts)] == [0.25, 1.0, 0.5]
    seeds, domains, images = 3, 4, 50
    rights = np.random.default_rng(1).binomial(images, np.linspace(0.2, 0.9, seeds * domains)).reshape(seeds, domains)
    tree = [trials(right_counts("k5", row / images, images)) for row in rights]
    found, plain = bootstrap_interval(tree, n=20000), bootstrap_interval(np.array(tree) + 1.0, n=20000)
    assert found.mean == pytest.approx(rights.mean() / images)
    assert (found.low, found.high) == pytest.approx((plain.low - 1, plain.high - 1), abs=0.01)  # drawn one by one


def test_bootstrap_is_reproducible_takes_tensors_and_works_in_blocks(monkeypatch):
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values)
    assert whole == bootstrap_interval(values.tolist()) and whole != bootstrap_interval(values, seed=1)
    monkeypatch.setattr("metalora_papers.statistics.DRAWN_AT_ONCE", 64)
    blocks = bootstrap_interval(values)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_bootstrap_does_not_pretend_certainty():
    for single in ([0.5], [[0.5]], [[[0.5]]]):
        found = bootstrap_interval(single)
        assert found.mean == 0.5 and found.n == 1
        assert math.isnan(found.std) and math.isnan(found.low) and math.isnan(found.high)
    one_seed = bootstrap_interval([[0.1, 0.5, 0.9]])
    assert math.isnan(one_seed.std) and one_seed.low < 0.5 < one_seed.high


def loop_share(column, labels):
    """Between-class over total sum of squares of one channel, in plain Python."""
    mean = sum(column) / len(column)
    total = sum((x - mean) ** 2 for x in column)
    between = 0.0
    for label in set(labels):
        inside = [x for x, other in zip(column, labels, strict=True) if other == label]
        between += len(inside) * (sum(inside) / len(inside) - mean) ** 2
    return between, total


def test_variance_shares_equal_plain_loops():
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([4, 4, -1, -1, -1, 8, 8, 8, 8, 8])
    x = torch.randn(10, 6, generator=g) + labels[:, None] * torch.linspace(0, 1, 6) + 100
    pairs = [loop_share(column.tolist(), labels.tolist()) for column in x.double().T]
    expected = sum(between for between, _ in pairs) / sum(total for _, total in pairs)
    assert variance_share(x, labels) == pytest.approx(expected)


def test_variance_shares_of_extreme_channels():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    x = torch.stack([labels.float(), torch.full((7,), 0.1), torch.tensor([1.0, -1, 1, -1, 0, 1, -1])], dim=1)
    assert variance_share(x[:, 1:2], labels) == 0 and variance_share(x[:, :1], labels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_t_test([1, 2], [1, 2, 3]), "one length"),
        (lambda: paired_t_test([1], [2]), "at least 2 pairs, not 1"),
        (lambda: paired_t_test([1, math.nan], [1, 2]), "finite"),
        (lambda: margin_of_error([1.0]), "at least 2 values"),
        (lambda: margin_of_error([1.0, math.nan]), "values must be finite"),
        (lambda: holm({"a": 0.1, "b": math.nan}), "p-value of 'b'"),
        (lambda: holm({"a": 1.1}), "p-value of 'a'"),
        (lambda: bootstrap_interval([]), "values is empty"),
        (lambda: bootstrap_interval([[1.0], []]), r"values\[1\] is empty"),
        (lambda: bootstrap_interval([[1.0], 2.0]), "values mixes numbers with lists"),
        (lambda: bootstrap_interval([[1.0], [[2.0]]]), "unequal depths"),
        (lambda: bootstrap_interval([[1.0], [math.nan]]), r"values\[1\] must be finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level must be between 0 and 1"),
        (lambda: bootstrap_interval([1.0, 2.0], n=0), "at least 1 replicate"),
        (lambda: variance_share(torch.ones(3, 2), torch.zeros(4)), "expected values"),
        (lambda: variance_share(torch.tensor([[math.nan]]), torch.zeros(1)), "finite"),
    ],
)
def test_errors_name_the_thing(call, message):
    with pytest.raises(ValueError, match=message):
        call()
