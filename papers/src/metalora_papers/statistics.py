"""Statistics of repeated runs: paired tests, Holm's correction, hierarchical bootstrap, shares of variance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

DRAWN_AT_ONCE = 4_000_000
Tree = list[Any] | np.ndarray  # nested values: seeds, then domains or episodes, then images


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, standard deviation between seeds (n - 1), interval bounds, number of seeds.

    `std` is NaN for one seed; `low` and `high` are NaN where there is only one value to resample.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Mean of a - b, the test's statistic, two-sided p-value, number of pairs."""

    difference: float
    statistic: float
    p_value: float
    n: int


def paired_t_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Test by Student's paired t-test, two-sided, whether the mean of a - b is zero.

    t = mean(a - b) / (std(a - b) / sqrt(n)) with n - 1 degrees of freedom. Equal differences have p = 0, or 1 where
    they are all zero. ValueError: unequal lengths, fewer than two pairs, NaN or infinite values.
    """
    from scipy.special import stdtr

    differences = _differences(a, b)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if np.ptp(differences) == 0:
        return PairedTest(mean, math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0, n)
    statistic = mean / error
    return PairedTest(mean, statistic, float(2 * stdtr(n - 1, -abs(statistic))), n)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p-values adjusted for a family of tests by Holm's step-down method, under the same names.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), p_(1) the smallest of m (Holm 1979). ValueError: a
    p-value outside [0, 1] or NaN.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p-value of {name!r} must be in [0, 1], not {p}")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def bootstrap_interval(values: Sequence[Any], level: float = 0.95, n: int = 2000, seed: int = 0) -> Summary:
    """Summarise values nested by seed, then domain, then image, with a hierarchical percentile bootstrap interval.

    Each of the n replicates draws seeds with replacement, then domains within each drawn seed, then images within
    each drawn domain; its value is the mean over seeds of the mean over domains of the mean over images. Inner levels
    may be absent and may be ragged. The percentile interval is too narrow below about ten seeds. ValueError: an empty
    level, NaN or infinite values, unequal depths, a level outside (0, 1), n < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if n < 1:
        raise ValueError(f"n must be at least 1 replicate, not {n}")
    tree = _tree(values, "values")
    seeds = np.array([_mean(child) for child in tree])
    std = float(seeds.std(ddof=1)) if len(seeds) > 1 else math.nan
    if _leaves(tree) == 1:
        return Summary(float(seeds.mean()), std, math.nan, math.nan, len(seeds))
    replicates = _resampled_means(tree, n, np.random.default_rng(seed))
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Summary(float(seeds.mean()), std, float(low), float(high), len(seeds))


def right_counts(metric: str, accuracies: Sequence[float], queries: int) -> dict[str, Any]:
    """How many of each group's `queries` were right: what a row keeps so that `trials` can resample single images."""
    return {"metric": metric, "queries": queries, "right": [round(value * queries) for value in accuracies]}


def trials(counts: dict[str, Any]) -> list[list[float]]:
    """Group by group (domain or episode), one number an image: 1 right, 0 wrong."""
    return [[1.0] * right + [0.0] * (counts["queries"] - right) for right in counts["right"]]


def variance_share(values: Tensor, groups: Tensor) -> float:
    """Return the share of the total variance of values (n, d), summed over d, that lies between groups (n,).

    sum_g n_g |mean_g - mean|^2 / sum_i |x_i - mean|^2, and 0 without variance. n items in G random groups give about
    (G - 1) / (n - 1), not 0. ValueError: other shapes, NaN or infinite values.
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
    centred = values - values.mean(0)
    # The mean of a constant channel may be off in its last bit, which would leave a share of pure rounding.
    centred = centred * (values.amax(0) > values.amin(0))
    names, index, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = centred.new_zeros(len(names), centred.shape[1]).index_add(0, index, centred)
    return (sums.square() / counts[:, None]).sum(0), centred.square().sum(0)


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """Return a - b (n,) in float64, or raise a ValueError."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"paired samples must have one length, not shapes {first.shape} and {second.shape}")
    if len(first) < 2:
        raise ValueError(f"a paired test needs at least 2 pairs, not {len(first)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired samples must be finite; some are NaN or infinite")
    return first - second


def _tree(values: Any, name: str) -> Tree:
    """Return nested values as lists of lists of 1-D float64 arrays, or raise a ValueError that names the place."""
    items = list(values)
    if not items:
        raise ValueError(f"{name} is empty")
    nested = [isinstance(item, (list, tuple)) or getattr(item, "ndim", 0) > 0 for item in items]
    if not any(nested):
        leaf = np.array([float(item) for item in items])
        if not np.isfinite(leaf).all():
            raise ValueError(f"{name} must be finite; some are NaN or infinite")
        return leaf
    if not all(nested):
        raise ValueError(f"{name} mixes numbers with lists")
    children = [_tree(item, f"{name}[{index}]") for index, item in enumerate(items)]
    if len({_depth(child) for child in children}) > 1:
        raise ValueError(f"{name} is nested to unequal depths")
    return children


def _depth(node: Tree) -> int:
    return 1 if isinstance(node, np.ndarray) else 1 + _depth(node[0])


def _leaves(node: Tree) -> int:
    return len(node) if isinstance(node, np.ndarray) else sum(map(_leaves, node))


def _mean(node: Any) -> float:
    return float(np.mean([_mean(child) for child in node] if isinstance(node, list) else node))


def _resampled_means(node: Tree, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return `draws` means (draws,) of the node, each from a fresh resample of it and of all below it."""
    size = len(node)
    if isinstance(node, np.ndarray):
        if np.isin(node, (0, 1)).all():  # the mean of a resample of trials is binomial: the same law, no draws
            return rng.binomial(size, node.mean(), size=draws) / size
        block = max(1, DRAWN_AT_ONCE // size)
        sizes = [min(block, draws - start) for start in range(0, draws, block)]
        return np.concatenate([node[rng.integers(size, size=(rows, size))].mean(1) for rows in sizes] or [np.empty(0)])
    picks = rng.integers(size, size=(draws, size))
    means = np.empty(picks.shape)
    for index, child in enumerate(node):
        drawn = picks == index
        means[drawn] = _resampled_means(child, int(drawn.sum()), rng)
    return means.mean(1)
