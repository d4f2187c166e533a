"""Statistics of repeated runs: paired tests, Holm's correction, hierarchical bootstrap, shares of variance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

DRAWN_AT_ONCE = 4_000_000  # numbers of a bootstrap that are in memory together: 32 MB
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # accuracies are counted in float32: a relative difference below is none
SIGNIFICANT = 0.05
LEAST_PAIRS = 3  # two differences are close to each other too often for a star
CRITICAL = 1.96  # of the standard normal distribution, two-sided, 95 %
Tree = list[Any] | np.ndarray  # nested values: seeds, then domains or episodes, then images


@dataclass(frozen=True)
class Summary:
    """A value over several seeds.

    Attributes:
        mean: Mean over seeds.
        std: Standard deviation between seeds, with n - 1 in its denominator; NaN for one seed.
        low: Lower bound of the interval; NaN if there is only one value to resample.
        high: Upper bound, likewise.
        n: Number of seeds.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """The result of a paired test.

    Attributes:
        difference: Mean of a - b.
        statistic: Student's t; None if all differences are equal.
        p_value: Two-sided; None if all differences are equal.
        n: Number of pairs.
    """

    difference: float
    statistic: float | None
    p_value: float | None
    n: int


def paired_t_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Test by Student's paired t-test, two-sided, whether the mean of a - b is zero.

    t = mean(a - b) / (std(a - b) / sqrt(n)) with n - 1 degrees of freedom (Student 1908). If all differences are equal
    but for rounding, the test is undefined: it divides by zero.

    Args:
        a: Values (n,).
        b: Values (n,), in the order of the pairs.

    Returns:
        The test.

    Raises:
        ValueError: Unequal lengths, fewer than two pairs, NaN or infinite values.

    Example:
        >>> paired_t_test([1.0, 2.0], [2.0, 3.0]).p_value is None
        True
    """
    from scipy.special import stdtr

    first, second = _paired(a, b)
    differences = first - second
    n = len(differences)
    mean = float(differences.mean())
    largest = float(max(np.abs(first).max(), np.abs(second).max()))
    if np.ptp(differences) <= ROUNDING * largest:
        return PairedTest(mean, statistic=None, p_value=None, n=n)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    statistic = mean / error
    # Two tails of the t-distribution; the lower tail at -|t| keeps its digits, 1 - (upper one) would cancel them.
    p_value = float(2 * stdtr(n - 1, -abs(statistic)))
    return PairedTest(mean, statistic, p_value, n)


def is_significant(p_value: float | None, pairs: int) -> bool:
    """Return whether a difference gets a star: p < 0.05, of at least three pairs.

    Example:
        >>> is_significant(0.04, pairs=3), is_significant(0.04, pairs=2), is_significant(None, pairs=9)
        (True, False, False)
    """
    return p_value is not None and p_value < SIGNIFICANT and pairs >= LEAST_PAIRS


def margin_of_error(values: Sequence[float]) -> float:
    """Return half of the width of the 95 % interval of a mean, for normal values.

    1.96 sigma / sqrt(n), with sigma the standard deviation, n - 1 in its denominator (MetaTT, arXiv:2506.09105, eq. 7).

    Args:
        values: A value for each seed, (n,).

    Raises:
        ValueError: Fewer than two values, NaN or infinite ones.

    Example:
        >>> round(margin_of_error([0.5, 0.6, 0.7]), 4)
        0.1132
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise ValueError(f"a margin of error needs at least 2 values (n,), not shape {numbers.shape}")
    return CRITICAL * float(_finite(numbers, "values").std(ddof=1)) / math.sqrt(len(numbers))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjust the p-values of a family of tests by Holm's step-down method.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), with p_(1) the smallest of m (Holm 1979).

    Args:
        p_values: The p-value of each test, by its name.

    Returns:
        The adjusted p-values under the same names, in the same order.

    Raises:
        ValueError: A p-value outside [0, 1] or NaN.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p-value of {name!r} must be in [0, 1], not {p}")
    ascending = sorted(p_values, key=p_values.__getitem__)
    adjusted = {}
    highest = 0.0  # the maximum over j <= i: a larger p-value never gets a smaller adjusted one
    for rank, name in enumerate(ascending):  # rank = j - 1
        hypotheses_left = len(p_values) - rank
        highest = max(highest, min(1.0, hypotheses_left * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def bootstrap_interval(values: Sequence[Any], level: float = 0.95, n: int = 2000, seed: int = 0) -> Summary:
    """Summarise values nested by seed, then domain, then image, with a hierarchical percentile bootstrap interval.

    Each replicate draws seeds with replacement, then domains within each drawn seed, then images within each drawn
    domain. Its value is the mean over seeds of the mean over domains of the mean over images. The percentile interval
    is too narrow below about ten seeds.

    Args:
        values: Nested sequences of numbers. Inner levels may be absent and may be ragged.
        level: Coverage of the interval, in (0, 1).
        n: Number of replicates.
        seed: Seed of the draws.

    Returns:
        Mean, deviation and interval.

    Raises:
        ValueError: An empty level, NaN or infinite values, unequal depths, a level outside (0, 1), n < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if n < 1:
        raise ValueError(f"n must be at least 1 replicate, not {n}")
    tree = _tree(values, "values")
    seed_means = np.array([_mean(child) for child in tree])
    mean = float(seed_means.mean())
    std = float(seed_means.std(ddof=1)) if len(seed_means) > 1 else math.nan
    if _count_leaves(tree) == 1:
        # Every resample of one value is that value: an interval of width zero would pretend certainty.
        return Summary(mean, std, math.nan, math.nan, len(seed_means))
    replicates = _resampled_means(tree, n, np.random.default_rng(seed))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Summary(mean, std, float(low), float(high), len(seed_means))


def right_counts(metric: str, accuracies: Sequence[float], queries: int) -> dict[str, Any]:
    """Count the right answers of each group: a row keeps them so that `trials` can resample single images.

    Args:
        metric: The metric.
        accuracies: The accuracy of each group (domain or episode), in [0, 1].
        queries: Number of images of every group.
    """
    right = [round(accuracy * queries) for accuracy in accuracies]  # exact: an accuracy is a count divided by queries
    return {"metric": metric, "queries": queries, "right": right}


def trials(counts: dict[str, Any]) -> list[np.ndarray]:
    """Return an array for each group (domain or episode) with a number for each image (n,): 1 if right, 0 if wrong."""
    queries = counts["queries"]
    # The order of the images is lost, and is not needed: a resample draws them without regard to order.
    return [np.repeat([1.0, 0.0], [right, queries - right]) for right in counts["right"]]


def variance_share(values: Tensor, groups: Tensor) -> float:
    """Return the share of the total variance that lies between groups.

    sum_g n_g |mean_g - mean|^2 / sum_i |x_i - mean|^2, summed over channels, and 0 without variance. n items in G
    random groups give about (G - 1) / (n - 1), not 0.

    Args:
        values: Values (n, d).
        groups: The group of each item, integers (n,).

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: Other shapes, NaN or infinite values.
    """
    between, total = _scatter(values, groups)
    return float(between.sum() / total.sum()) if total.sum() > 0 else 0.0


def _scatter(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the between-group and the total sum of squares of values (n, d), each (d,) in float64."""
    if values.ndim != 2 or groups.ndim != 1 or len(values) != len(groups) or not values.numel():
        raise ValueError(f"expected values (n, d) and groups (n,), got {tuple(values.shape)}, {tuple(groups.shape)}")
    if not values.isfinite().all():
        raise ValueError("values must be finite; some are NaN or infinite")
    values, groups = values.detach().double(), groups.to(values.device)
    centred = values - values.mean(0)  # (n, d)
    # The mean of a constant channel may be off in its last bit, which would leave a share of pure rounding.
    centred = centred * (values.amax(0) > values.amin(0))
    names, index, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = centred.new_zeros(len(names), centred.shape[1]).index_add(0, index, centred)  # (group, d)
    # n_g |mean_g|^2 = |sum_g|^2 / n_g
    between = (sums.square() / counts[:, None]).sum(0)
    total = centred.square().sum(0)
    return between, total


def _paired(a: Sequence[float], b: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two samples (n,) in float64, or raise a ValueError."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"paired samples must have one length, not shapes {first.shape} and {second.shape}")
    if len(first) < 2:
        raise ValueError(f"a paired test needs at least 2 pairs, not {len(first)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired samples must be finite; some are NaN or infinite")
    return first, second


def _tree(values: Any, name: str) -> Tree:
    """Return nested values as lists of lists of 1-D float64 arrays, or raise a ValueError that names the place."""
    if len(values) == 0:
        raise ValueError(f"{name} is empty")
    if isinstance(values, np.ndarray) and values.ndim == 1:  # the single images of `trials`, thousands of them
        return _finite(values.astype(np.float64), name)
    items = list(values)
    nested = [isinstance(item, (list, tuple)) or getattr(item, "ndim", 0) > 0 for item in items]
    if not any(nested):
        return _finite(np.array([float(item) for item in items]), name)
    if not all(nested):
        raise ValueError(f"{name} mixes numbers with lists")
    children = [_tree(item, f"{name}[{index}]") for index, item in enumerate(items)]
    if len({_depth(child) for child in children}) > 1:
        raise ValueError(f"{name} is nested to unequal depths")
    return children


def _finite(leaf: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(leaf).all():
        raise ValueError(f"{name} must be finite; some are NaN or infinite")
    return leaf


def _depth(node: Tree) -> int:
    return 1 if isinstance(node, np.ndarray) else 1 + _depth(node[0])


def _count_leaves(node: Tree) -> int:
    return len(node) if isinstance(node, np.ndarray) else sum(map(_count_leaves, node))


def _mean(node: Any) -> float:
    """Return the mean of the children's means: of ragged children each counts the same, whatever its size."""
    if isinstance(node, list):
        return float(np.mean([_mean(child) for child in node]))
    return float(np.mean(node))


def _resampled_means(node: Tree, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return `draws` means (draws,) of the node, each from a new resample of it and of all below it."""
    if isinstance(node, np.ndarray):
        return _resampled_leaf_means(node, draws, rng)
    size = len(node)
    picks = rng.integers(size, size=(draws, size))
    means = np.empty(picks.shape)
    for index, child in enumerate(node):
        # A child that is picked several times in one draw is resampled anew for each of them.
        picked = picks == index
        means[picked] = _resampled_means(child, int(picked.sum()), rng)
    return means.mean(1)


def _resampled_leaf_means(leaf: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return `draws` means (draws,) of resamples of the values (n,)."""
    size = len(leaf)
    if (
        (leaf == 0) | (leaf == 1)
    ).all():  # the mean of a resample of trials is binomial: the same law, without the draws
        return rng.binomial(size, leaf.mean(), size=draws) / size
    rows_at_once = max(1, DRAWN_AT_ONCE // size)
    blocks = [np.empty(0)]  # so that no draws give an empty array
    for start in range(0, draws, rows_at_once):
        rows = min(rows_at_once, draws - start)
        picks = rng.integers(size, size=(rows, size))
        blocks.append(leaf[picks].mean(1))
    return np.concatenate(blocks)
