"""A small form of a fitted readout: fewer dimensions, fewer items of the support set, fewer bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softmax

from metalora.learner.readouts.compact_calibration import recalibrated
from metalora.learner.readouts.fitted import FittedReadout, nearest_distances
from metalora.learner.readouts.kernel import FeatureKernel, pivots, squared_distances
from metalora.learner.readouts.kernel_fit import KernelFit, fit_kernel_rule
from metalora.learner.readouts.projection import projection_onto
from metalora.learner.readouts.rules import KernelRule, LinearRule

BYTES_PER_TENSOR = 100  # what a safetensors file says of a tensor: name, type, shape, place
REPRESENTATIVES = (1000, 500, 250, 120, 60, 30, 15)
TYPICAL_QUERIES = 200
FOLDS = 10
INTERCEPT = 100.0  # a constant in a linear kernel of about 1 on its diagonal
DIMENSIONS = (8, 10, 12, 16, 20, 24, 32, 48)
LARGEST_ROUNDING = 0.01  # of a mean or a factor in half precision, in standard deviations of the feature


def stored_bytes(fitted: FittedReadout) -> int:
    """Return the size of a fitted readout in a file, in bytes.

    Args:
        fitted: The fitted readout.

    Example:
        >>> from metalora.learner.readouts import Targets, make_readout
        >>> targets = Targets.classes(torch.arange(12) % 3, 3)
        >>> stored_bytes(make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets)) < 2000
        True
    """
    tensors = fitted.tensors().values()
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return payload + BYTES_PER_TENSOR * len(tensors) + len(json.dumps(fitted.settings()))


def compacted(fitted: FittedReadout, max_bytes: int) -> FittedReadout:
    """Return a fitted readout of at most `max_bytes`; see `FittedReadout.compact`.

    The weighted features are projected (`projection_onto`) onto the directions in which the logits change most and the
    principal directions of the support set. A large support set is first reduced to representatives (a Nystroem
    approximation). Features of the smallest weights are left out if there is no room for all, and a kernel rule or a
    linear rule is fitted anew to the others. The temperature is chosen anew, too (`recalibrated`). Of the numbers of
    dimensions and representatives that fit, those are chosen that change the probabilities of random queries least;
    these queries have the class means and the covariance of the support set.

    Args:
        fitted: A fitted readout.
        max_bytes: The largest size, as `stored_bytes` counts it.

    Raises:
        ValueError: No form is that small, or the readout is compact already.

    Example:
        >>> from metalora.learner.readouts import Targets, make_readout
        >>> targets = Targets.classes(torch.arange(60) % 3, 3)
        >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(60, 400), targets)
        >>> stored_bytes(compacted(fitted, 20_000)) <= 20_000 < stored_bytes(fitted)
        True
    """
    if stored_bytes(fitted) <= max_bytes:
        return fitted
    if fitted.scaling.projection is not None:
        raise ValueError("a compact readout cannot be made smaller: start from the full one")
    precise, ridge_of_all = _with_one_kernel(fitted.to(fitted.support.double()))
    queries = _typical_queries(precise)
    wanted = _outputs(precise.rule.logits(queries, precise.support), precise)
    best: FittedReadout | None = None
    smallest_change = float("inf")
    for candidate, narrow in _candidates(precise, ridge_of_all, max_bytes):
        assert candidate.scaling.projection is not None
        projected = candidate.scaling.projection.of_queries(narrow.features(queries).float())
        outputs = _outputs(candidate.rule.logits(projected, candidate.support), candidate)
        change = float((outputs - wanted).abs().mean())
        if change < smallest_change:
            best, best_narrow, smallest_change = candidate, narrow, change
    if best is None:
        raise ValueError(f"a readout of {len(fitted.support)} examples has no form of at most {max_bytes} bytes")
    items = best_narrow.features(precise.support)
    temperature, ridge = best_narrow.fitted.temperature, best_narrow.ridge
    calibrated = recalibrated(best, precise, len(best_narrow.columns), temperature, ridge)
    return replace(calibrated, nearest=_held_out_nearest(best, best_narrow.fitted, items)).rounded()


class _Narrow(NamedTuple):
    """A readout that uses some of the features.

    Attributes:
        fitted: The readout, with the weighted features (m, d') of its representatives.
        columns: Positions of its features among all, (d',).
        factor: By what their weights are larger than before.
        ridge: The ridge of its kernel rule; None for another rule, or if the rule is not fitted anew.
    """

    fitted: FittedReadout
    columns: Tensor
    factor: Tensor
    ridge: float | None = None

    def features(self, weighted: Tensor) -> Tensor:
        """Return its weighted features, (n, d'), of all weighted features (n, d)."""
        return weighted[:, self.columns] * self.factor


def _narrowed(
    fitted: FittedReadout,
    reduced: FittedReadout,
    representatives: Tensor | None,
    columns: Tensor,
    ridge: float | None,
) -> _Narrow:
    """Return a readout that uses some of the features.

    The weights of a kernel rule get the sum of squares again that they had, and its coefficients are fitted anew: those
    of a kernel of all features are wrong for one of some of them.

    Args:
        fitted: The readout with the weighted features of the whole support set, (n, d).
        reduced: The readout with those of the representatives, (m, d).
        representatives: Positions of the representatives, (m,); None: all.
        columns: Positions of the features, (d',).
        ridge: The ridge of the kernel rule of `reduced`, or None.
    """
    energy = fitted.support.square().sum(0)
    if len(columns) == len(energy):
        return _Narrow(reduced, columns, energy.new_ones(()), ridge)
    if isinstance(fitted.rule, LinearRule):
        return _Narrow(_refit_linear(_with_columns(fitted, columns)), columns, energy.new_ones(()))
    if not isinstance(fitted.rule, KernelRule):
        return _Narrow(_with_columns(fitted, columns), columns, energy.new_ones(()))
    factor = (energy.sum() / energy[columns].sum()).sqrt()
    narrow = _with_columns(fitted, columns)
    scaled = replace(narrow, scaling=narrow.scaling.weighted(factor), support=narrow.support * factor)
    refitted, fit = _refit(scaled, representatives)
    return _Narrow(refitted, columns, factor, fit.ridge)


def _with_columns(fitted: FittedReadout, columns: Tensor) -> FittedReadout:
    """Return a readout without the features that are not at `columns`, (d',); its rule is not fitted anew."""
    return replace(
        fitted,
        scaling=fitted.scaling.only(columns),
        support=fitted.support[:, columns],
        rule=fitted.rule.only(columns),
    )


def _with_one_kernel(fitted: FittedReadout) -> tuple[FittedReadout, float | None]:
    """Return the readout with the better of two kernels, of all or of the frozen features, if it has their mean.

    Another kernel rule of classes is fitted anew, too: the compact forms, which are compared with it, have the
    temperatures of such fits.

    Returns:
        The readout, and the ridge of its kernel rule; None for another rule, or if the rule is not fitted anew.
    """
    rule = fitted.rule
    if not isinstance(rule, KernelRule):
        return fitted, None
    if not rule.frozen_width:
        if fitted.targets.kind != "classes":
            return fitted, None
        refitted, fit = _refit(fitted, None)
        return refitted, fit.ridge
    frozen_scaling = fitted.scaling.first(rule.frozen_width, rule.frozen_scale)
    frozen = replace(fitted, scaling=frozen_scaling, support=fitted.support[:, : rule.frozen_width] * rule.frozen_scale)
    fits = [_refit(fitted, None), _refit(frozen, None)]
    refitted, fit = max(fits, key=lambda pair: pair[1].likelihood)  # the first if they are equal
    return refitted, fit.ridge


def _refit(fitted: FittedReadout, representatives: Tensor | None) -> tuple[FittedReadout, KernelFit]:
    """Return a kernel readout with a new rule, and the fit that it is from.

    Args:
        fitted: A readout with the weighted features of the whole support set.
        representatives: Positions of the items that the new rule has, (m,); None: all.
    """
    kernel, chosen = FeatureKernel(), representatives
    values = kernel(fitted.support, fitted.support)
    fit = fit_kernel_rule(values, kernel, fitted.targets, fitted.balanced, chosen, fitted.groups, quick_ridge=True)
    support = fitted.support if representatives is None else fitted.support[representatives]
    refitted = replace(fitted, rule=fit.rule, leave_one_out=fit.leave_one_out, temperature=fit.temperature)
    return replace(refitted, support=support), fit


def _refit_linear(fitted: FittedReadout) -> FittedReadout:
    """Return a readout with a new linear rule: ridge regression and a discriminant, with their temperature.

    The kernel has a large constant, so that the ridge hardly holds an intercept down: the weighted features have the
    mean 0, and without an intercept, an item would follow from the others, whose sum is its negative.

    Args:
        fitted: A readout with the weighted features of the whole support set.
    """
    support = fitted.support
    energy = support.square().sum(1).mean()  # ridges are for a kernel of about 1 on its diagonal
    values = support @ support.mT / energy + INTERCEPT
    fit = fit_kernel_rule(values, FeatureKernel(), fitted.targets, fitted.balanced, groups=fitted.groups)
    coefficients = fit.rule.coefficients
    rule = LinearRule(support.mT @ coefficients / energy, fit.rule.offset + INTERCEPT * coefficients.sum(0))
    return replace(fitted, rule=rule, leave_one_out=fit.leave_one_out, temperature=fit.temperature)


def _typical_queries(fitted: FittedReadout) -> Tensor:
    """Return random weighted features, (200, d): class means plus Gaussian noise of the covariance within classes."""
    generator = torch.Generator().manual_seed(0)
    support, targets = fitted.support, fitted.targets
    if targets.kind == "classes":
        codes = targets.codes
        means = (targets.matrix.mT @ support) / targets.matrix.sum(0)[:, None]
    else:
        codes = torch.zeros(len(support), dtype=torch.int64, device=support.device)
        means = support.mean(0, keepdim=True)
    drawn = torch.randint(len(means), (TYPICAL_QUERIES,), generator=generator).to(support.device)
    mixtures = torch.randn(TYPICAL_QUERIES, len(support), generator=generator, dtype=torch.float64).to(support)
    queries: Tensor = means[drawn] + mixtures @ (support - means[codes]) / len(support) ** 0.5
    return queries


def _outputs(logits: Tensor, fitted: FittedReadout) -> Tensor:
    """Return probabilities, or numbers in units of their standard deviation, (m, count)."""
    if fitted.targets.kind == "numbers":
        return logits / fitted.targets.deviation()
    return softmax(logits, -1) if fitted.targets.kind == "classes" else logits.sigmoid()


def _candidates(
    fitted: FittedReadout, ridge_of_all: float | None, max_bytes: int
) -> Iterator[tuple[FittedReadout, _Narrow]]:
    """Yield compact forms of at most `max_bytes`, each with the readout that it is a projection of.

    Args:
        fitted: The readout with the weighted features of the whole support set.
        ridge_of_all: The ridge of its kernel rule, or None.
        max_bytes: The largest size.
    """
    items = len(fitted.support)
    counts = [items] if items <= REPRESENTATIVES[0] else []
    if isinstance(fitted.rule, KernelRule):
        counts += [count for count in REPRESENTATIVES if count < items]
    for count in counts:
        reduced, representatives, ridge = fitted, None, ridge_of_all
        if count < items:
            representatives = pivots(FeatureKernel()(fitted.support, fitted.support), count)
            reduced, fit = _refit(fitted, representatives)
            ridge = fit.ridge
        for size in DIMENSIONS:
            columns = _columns_that_fit(reduced, size, max_bytes)
            if len(columns) >= size:
                narrow = _narrowed(fitted, reduced, representatives, columns, ridge)
                candidate = _projected(narrow.fitted, size)
                if stored_bytes(candidate) <= max_bytes:
                    yield candidate, narrow


def _columns_that_fit(fitted: FittedReadout, size: int, max_bytes: int) -> Tensor:
    """Return the positions of the features of largest weight for which a projection to `size` dimensions has room."""
    width = len(fitted.scaling.mean)
    everything = torch.arange(width, device=fitted.support.device)
    if width <= size:
        return everything
    per_feature = size + 2 * (2 if _can_be_halved(fitted) else 4)  # levels, mean and factor
    per_column = 4  # its number, unless all are used
    smallest = _projected(_with_columns(fitted, everything[:size]), size)
    fixed = stored_bytes(smallest) - size * (per_feature + per_column)
    if fitted.scaling.columns is None and fixed - BYTES_PER_TENSOR + width * per_feature <= max_bytes:
        return everything
    room = (max_bytes - fixed) // (per_feature + per_column)
    weights = fitted.support.square().sum(0)
    return weights.topk(max(0, min(room, width))).indices.sort().values


def _projected(fitted: FittedReadout, size: int) -> FittedReadout:
    """Return a readout whose weighted features are projected to `size` dimensions, and rounded.

    Args:
        fitted: A readout with m representatives of the support set, or with all items.
        size: Number of dimensions.
    """
    projection = projection_onto(fitted.rule.directions(fitted.support), fitted.support, size)
    halved = ["support", "leave_one_out", "nearest"]
    if _can_be_halved(fitted):
        halved += ["mean", "factor"]
    compact = replace(
        fitted,
        scaling=replace(fitted.scaling, projection=projection),
        support=projection.of_items(fitted.support),
        rule=fitted.rule.projected(projection),
        halved=tuple(halved),
    )
    return compact.rounded()


def _can_be_halved(fitted: FittedReadout) -> bool:
    """Return whether mean and factor in half precision move no feature by more than a hundredth of its deviation."""
    mean, factor = fitted.scaling.mean, fitted.scaling.factor
    deviations = fitted.support.square().mean(0).sqrt()  # of the weighted features
    is_close = (mean - mean.half().double()).abs() * factor <= LARGEST_ROUNDING * deviations
    is_close &= (factor - factor.half().double()).abs() <= LARGEST_ROUNDING * factor
    return bool(is_close.all())


def _held_out_nearest(compact: FittedReadout, reduced: FittedReadout, items: Tensor) -> Tensor:
    """Return the projected distance of each item to its nearest representative, (n,), as if the item were a query.

    A projection onto the principal directions of a support set is closer to its items than to queries. The items of
    each of ten folds are therefore projected onto the principal directions of the other representatives.

    Args:
        compact: The compact form.
        reduced: The readout before its projection.
        items: Its weighted features of the support set, (n, d').
    """
    assert compact.scaling.projection is not None
    size = compact.scaling.projection.mixing.shape[0]
    directions = reduced.rule.directions(reduced.support)
    representatives = reduced.support
    nearest = compact.nearest if compact.nearest is not None else nearest_distances(items)
    nearest = nearest.to(items)
    fold = torch.arange(len(items), device=items.device) % min(FOLDS, len(items))
    for number in range(int(fold.max()) + 1):
        queries = items[fold == number]
        is_held_out = (squared_distances(queries, representatives) <= 1e-12).any(0)
        if not is_held_out.all():
            others = representatives[~is_held_out]
            projection = projection_onto(directions, others, size)
            distances = squared_distances(projection.of_queries(queries), projection.of_items(others))
            nearest[fold == number] = distances.amin(1).sqrt()
    return nearest
