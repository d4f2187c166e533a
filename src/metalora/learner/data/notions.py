"""Procedural notions: labels that nobody gave, made from unlabelled inputs.

A notion is a random vector v(x) with three values for every item, and a rule that turns the values into classes. The
values are a random mix of the principal components of the statistics of the frozen network, or a random functional of
the input itself. A learner that has met enough of such notions learns to read a notion off its support set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metalora.learner.data.functionals import functional_values
from metalora.learner.data.label_sets import consecutive_classes
from metalora.learner.data.preprocessing import Inputs
from metalora.learner.data.random_draws import chance, random_normal, random_whole_number

VALUES = 3  # numbers that a notion has for every item
COMPONENTS = 24  # leading principal components that notions mix
FITTED_ITEMS = 2048  # items from which the components are computed; more would change little
ATTEMPTS = 8  # notions that are tried before a draw goes without one
KMEANS_STEPS = 6
TINY = 1e-6  # values that vary by less than this share of their size are constant


class ProceduralNotions:
    """Draws notions for a batch of items.

    Args:
        statistics: Statistics of the frozen network over the pool, (N, d), from which the principal components are
            computed; None: all notions are functionals of the input.

    Raises:
        ValueError: A statistic is not finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(40, 6, generator=generator)
        >>> codes = ProceduralNotions(None).labels(inputs, None, 24, generator)
        >>> codes.shape, bool((codes[:24].bincount() >= 3).all())
        (torch.Size([40]), True)
    """

    def __init__(self, statistics: Tensor | None = None):
        self._components: PrincipalComponents | None = None
        if statistics is not None:
            self._components = PrincipalComponents(statistics)

    def labels(self, inputs: Inputs, statistics: Tensor | None, support: int, generator: torch.Generator) -> Tensor:
        """Return the classes of the items under a new notion.

        Args:
            inputs: Prepared inputs of n items, the support set first: pictures (n, channels, height, width), texts
                (token numbers and a mask), or arrays (n, ...).
            statistics: Statistics of the frozen network for these items, (n, d), or None.
            support: Number of items in the support set.
            generator: Source of all randomness.

        Returns:
            Class numbers from 0, (n,) int64, -1 for an item that is not used. Every class has at least three items of
            the support set, and one query has a class. All -1 if no notion tells the items apart, such as for equal
            inputs.

        Raises:
            ValueError: The statistics have another width than those of the pool.
        """
        count = _number_of_items(inputs)
        for _ in range(ATTEMPTS):
            values = self._values(inputs, statistics, generator)
            varied = _standardised(values)
            if varied is None:
                continue
            rule = RULES[random_whole_number(len(RULES), generator)]
            codes = consecutive_classes(rule(varied, generator), support)
            if codes is not None:
                return codes
        return torch.full((count,), -1, dtype=torch.int64)

    def _values(self, inputs: Inputs, statistics: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return the values of a new notion, (n, 3)."""
        if self._components is not None and statistics is not None and chance(0.5, generator):
            return self._components.random_mix(statistics, generator)
        return functional_values(inputs, VALUES, generator)


class PrincipalComponents:
    """The leading principal components of standardised statistics.

    A component has the standard deviation eigenvalue^(1/4) instead of eigenvalue^(1/2), so that the first ones matter
    most but do not hide the others.

    Args:
        statistics: The statistics of N items, (N, d).

    Raises:
        ValueError: A statistic is not finite.

    Example:
        >>> components = PrincipalComponents(torch.randn(50, 5))
        >>> components.scores(torch.randn(7, 5)).shape
        torch.Size([7, 5])
    """

    def __init__(self, statistics: Tensor):
        if not statistics.isfinite().all():
            raise ValueError("the statistics of the frozen network have a value that is NaN or infinite")
        step = -(-len(statistics) // FITTED_ITEMS)
        fitted = statistics[::step].detach().float().cpu()
        self.mean = fitted.mean(0)
        std = fitted.std(0, correction=0)
        varies = std > TINY * fitted.abs().amax(0)
        std = std.where(varies, torch.inf)  # a constant counts for nothing
        directions, eigenvalues = _principal_directions((fitted - self.mean) / std)
        self.projection = directions * eigenvalues.pow(-0.25) / std[:, None]  # (d, components)

    def scores(self, statistics: Tensor) -> Tensor:
        """Return the components of n items, (n, components)."""
        width = len(self.projection)
        if statistics.shape[1] != width:
            raise ValueError(f"statistics of width {statistics.shape[1]}, those of the pool have {width}")
        return (statistics.float() - self.mean) @ self.projection

    def random_mix(self, statistics: Tensor, generator: torch.Generator) -> Tensor:
        """Return a Gaussian mix of two or more random components, (n, 3)."""
        scores = self.scores(statistics)
        count = scores.shape[1]
        if count == 0:
            return torch.zeros(len(scores), VALUES)
        mixed = min(count, 2 + random_whole_number(max(count - 1, 1), generator))
        chosen = torch.randperm(count, generator=generator)[:mixed]
        return scores[:, chosen] @ random_normal(mixed, VALUES, generator=generator)


def _principal_directions(standardised: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions (d, k) and their variances (k,), the largest first; k is at most 24."""
    items, width = standardised.shape
    if width <= items:
        eigenvalues, vectors = torch.linalg.eigh(standardised.mT @ standardised / items)
    else:
        eigenvalues, item_vectors = torch.linalg.eigh(standardised @ standardised.mT / items)
        lengths = (eigenvalues * items).clamp_min(TINY).sqrt()
        vectors = standardised.mT @ item_vectors / lengths
    eigenvalues, vectors = eigenvalues.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
    varies = eigenvalues > TINY * width
    return vectors[:, varies], eigenvalues[varies]


def _number_of_items(inputs: Inputs) -> int:
    return len(inputs["input_ids"] if isinstance(inputs, Mapping) else inputs)


def _standardised(values: Tensor) -> Tensor | None:
    """Return values (n, 3) with mean 0 and variance 1 each; None if one of them does not vary."""
    deviation = values - values.mean(0)
    std = deviation.square().mean(0).sqrt()
    size = values.abs().amax(0)
    if not (std > TINY * size.clamp_min(TINY)).all():  # NaN fails too
        return None
    return deviation / std


# ---- rules: values (n, 3) to classes (n,) ---------------------------------------------------------------------------
def quantile_bins(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the bin of the first value: two to six bins with the same number of items; equal values share a bin.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> quantile_bins(torch.tensor([[1.0], [1.0], [9.0], [9.0]]), generator).unique().numel()
        2
    """
    bins = 2 + random_whole_number(5, generator)
    shares = torch.arange(1, bins) / bins
    first = values[:, 0].contiguous()
    return torch.bucketize(first, torch.quantile(first, shares))


def sectors(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sector of the first two values around their mean: three to six sectors of equal angles."""
    count = 3 + random_whole_number(4, generator)
    angle = torch.atan2(values[:, 1], values[:, 0]) / (2 * torch.pi)  # in turns
    start = torch.rand((), generator=generator)
    return ((angle + start) % 1 * count).long().clamp_max(count - 1)


def clusters(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cluster of the values: k-means with three to six clusters, six steps from random items."""
    count = min(3 + random_whole_number(4, generator), len(values))
    centres = values[torch.randperm(len(values), generator=generator)[:count]]
    for _ in range(KMEANS_STEPS):
        nearest = _nearest(values, centres)
        members = torch.nn.functional.one_hot(nearest, count).to(values.dtype)  # (n, clusters)
        sizes = members.sum(0)[:, None]
        means = members.mT @ values / sizes.clamp_min(1)
        centres = torch.where(sizes > 0, means, centres)
    return _nearest(values, centres)


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    """Return the number of the nearest centre, (n,): |v - c|^2 = |v|^2 - 2 v·c + |c|^2, whose |v|^2 does not matter."""
    return (centres.square().sum(1) - 2 * values @ centres.mT).argmin(1)


RULES: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (quantile_bins, sectors, clusters)
