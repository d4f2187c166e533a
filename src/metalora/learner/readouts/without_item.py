"""A support set as each of its items finds it when it is left out: with other means, deviations and weights.

Shapes: n items of the support set, m of them that are left out one at a time, d features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metalora.learner.readouts.standardise import Centred, standard_factors, varies_enough
from metalora.learner.readouts.targets import Targets
from metalora.learner.readouts.weights import normalised, share_weights

NUMBERS_AT_ONCE = 2_000_000  # more fall out of the cache of a CPU
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class WithoutItem:
    """Weighted features of a support set without each of some items, z_ij = (x_j - shift_i) * factor_i.

    Attributes:
        items: Positions of the items that are left out, (m,).
        deviations: Features x of the support set minus the mean of all its items, (n, d).
        shifts: Mean of the other items, relative to that of all, (m, d).
        factors: Standardisation and weights, as `share_scaling` gives them to the other items, (m, d).
    """

    items: Tensor
    deviations: Tensor
    shifts: Tensor
    factors: Tensor

    def only_largest(self, kept: int) -> WithoutItem:
        """Return them with only the `kept` features that vary most; the factors of the others are 0."""
        left = len(self.deviations) - 1
        own = self.deviations[self.items]
        total = self.deviations.square().sum(0) - own.square() * (left + 1) / left
        columns = (total * self.factors.square()).topk(kept, dim=1).indices
        factors = torch.zeros_like(self.factors).scatter(1, columns, self.factors.gather(1, columns))
        return replace(self, factors=factors)

    def own(self) -> Tensor:
        """Return the weighted features of the items that are left out, (m, d)."""
        return (self.deviations[self.items] - self.shifts) * self.factors

    def cosines(self) -> Tensor:
        """Return the cosines of each left-out item with all items, (m, n)."""
        own = self.own()
        scaled = own * self.factors
        products = scaled @ self.deviations.mT - (scaled * self.shifts).sum(1, keepdim=True)
        cosines: Tensor = products / self.norms() / own.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
        return cosines

    def norms(self) -> Tensor:
        """Return the norms of all items, (m, n), without those that are left out; at least 1e-12."""
        squares = self.factors.square()
        shifted = squares * self.shifts
        products = squares @ self.deviations.square().mT - 2 * shifted @ self.deviations.mT
        return (products + (shifted * self.shifts).sum(1, keepdim=True)).clamp_min(SMALLEST_NORM**2).sqrt()

    def class_means(self, one_hot: Tensor, divisors: Tensor | None = None) -> Tensor:
        """Return the means of the classes without the left-out items, (m, classes, d).

        Args:
            one_hot: Classes of the items, one-hot, (n, classes).
            divisors: What the weighted features of each item are divided by, (m, n); None: nothing.

        Returns:
            The means; 0 for a class whose single item is left out.
        """
        others = one_hot.new_ones(len(self.items), len(one_hot)).scatter(1, self.items[:, None], 0)
        shares = others if divisors is None else others / divisors
        means = []
        for members in one_hot.mT > 0:
            of_class = shares[:, members]
            sums = of_class @ self.deviations[members] - of_class.sum(1, keepdim=True) * self.shifts
            means.append(sums * self.factors / others[:, members].sum(1, keepdim=True).clamp_min(1))
        return torch.stack(means, 1)


def without_each_item(centred: Centred, targets: Targets) -> Iterator[WithoutItem]:
    """Yield the weighted features of a support set without each of its items, for some items at a time.

    They are those of `share_scaling` for the other items, in closed form: without item i of class k, the sum of squares
    of a feature falls by n / (n - 1) x_i^2, and of the sums over the classes only that of k changes.

    Args:
        centred: The support set, in float64.
        targets: Its classes.

    Example:
        >>> from metalora.learner.readouts.standardise import centre
        >>> support, targets = torch.randn(6, 4).double(), Targets.classes(torch.arange(6) % 2, 2)
        >>> [part.cosines().shape for part in without_each_item(centre(support), targets)]
        [torch.Size([6, 6])]
    """
    items, width = centred.deviations.shape
    at_once = max(1, NUMBERS_AT_ONCE // (width * targets.count))
    for chunk in torch.split(torch.arange(items, device=centred.deviations.device), at_once):
        yield _without(centred, targets, chunk)


def _without(centred: Centred, targets: Targets, items: Tensor) -> WithoutItem:
    """Return the weighted features without each of some items, (m,)."""
    left = len(centred.deviations) - 1
    total, explained = sums_without_items(centred, targets, items)
    variance = total / left
    is_used = centred.is_used & varies_enough(variance, centred.size)
    weights = normalised(share_weights(share_of(explained, total, is_used), left, targets.count - 1), is_used)
    shifts = -centred.deviations[items] / left
    return WithoutItem(items, centred.deviations, shifts, standard_factors(variance, is_used) * weights)


def sums_without_items(centred: Centred, targets: Targets, items: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of squares of each feature without each of some items, and what of it the classes explain.

    Args:
        centred: The support set.
        targets: Its classes.
        items: Positions of the items that are left out, one at a time, (m,).

    Returns:
        Sums of squares of the deviations from the mean of the others, and of those of their class means, (m, d) each.
    """
    deviations, one_hot = centred.deviations, targets.matrix.to(centred.deviations)
    left = len(deviations) - 1
    own = deviations[items]
    total = (centred.variance * (left + 1) - own.square() * (left + 1) / left).clamp_min(0)
    sums, counts = one_hot.mT @ deviations, one_hot.sum(0)
    codes = targets.codes[items]
    own_sums, own_counts = sums[codes], counts[codes][:, None]
    explained = (sums.square() / counts[:, None]).sum(0) - own_sums.square() / own_counts
    explained = explained + (own_sums - own).square() / (own_counts - 1).clamp_min(1) - own.square() / left
    return total, explained.clamp_min(0)


def share_of(explained: Tensor, total: Tensor, is_used: Tensor) -> Tensor:
    """Return the shares of sums of squares that are explained, all (m, d); 0 for features that are not used."""
    safe = torch.where(is_used, total, torch.ones_like(total))
    return torch.where(is_used, explained / safe, torch.zeros_like(total))
