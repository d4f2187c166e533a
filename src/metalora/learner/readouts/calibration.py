"""Likelihood, temperature and calibration error of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from metalora.learner.readouts.targets import Targets

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE, TEMPERATURES = 0.2, 30.0, 30


def log_likelihoods(logits: Tensor, targets: Targets) -> Tensor:
    """Return the log-likelihood of the targets of each of n items.

    Args:
        logits: Logits of classes or of labels, or predicted numbers, (..., n, count). For numbers, the result is minus
            half the squared error in units of the variance of the targets.
        targets: The targets of the items.

    Returns:
        Log-likelihoods, (..., n).

    Example:
        >>> log_likelihoods(torch.zeros(2, 2), Targets.classes(torch.tensor([0, 1]), count=2))
        tensor([-0.6931, -0.6931])
    """
    if targets.kind == "classes":
        return (log_softmax(logits, -1) * targets.matrix).sum(-1)
    if targets.kind == "multilabel":
        signs = 2 * targets.matrix - 1
        return logsigmoid(logits * signs).mean(-1)
    return -((logits - targets.matrix) / targets.deviation()).square().mean(-1) / 2


def mean_log_likelihood(logits: Tensor, targets: Targets, item_weights: Tensor) -> Tensor:
    """Return the weighted mean of `log_likelihoods`, (...).

    Args:
        logits: Logits of classes or of labels, or predicted numbers, (..., n, count).
        targets: The targets of the items.
        item_weights: Weights of the items, (n,); if their sum is 0, the result is 0.

    Example:
        >>> targets = Targets.classes(torch.tensor([0, 1]), count=2)
        >>> mean_log_likelihood(torch.zeros(2, 2), targets, torch.ones(2))
        tensor(-0.6931)
    """
    return (log_likelihoods(logits, targets) * item_weights).sum(-1) / item_weights.sum().clamp_min(1e-12)


def better_by_standard_error(likelihoods: Sequence[Tensor]) -> int:
    """Return which fit to take: the first, unless another one is better by more than the standard error.

    It is the rule of one standard error (Breiman et al. 1984) for paired differences of the items.

    Args:
        likelihoods: Log-likelihoods of the n items under each fit, (n,) each.

    Returns:
        The number of the fit.

    Example:
        >>> first = torch.tensor([-1.0, -1.1, -0.9, -1.0])
        >>> better_by_standard_error([first, first + torch.tensor([1.0, -0.9, 0.1, 0.1])])  # 0.08 +- 0.39
        0
        >>> better_by_standard_error([first, first + 0.5])
        1
    """
    differences = torch.stack(list(likelihoods)) - likelihoods[0]  # (fits, n)
    errors = differences.std(1, correction=0) / differences.shape[1] ** 0.5
    best, best_gain = 0, 0.0
    for number, (gain, error) in enumerate(torch.stack([differences.mean(1), errors], 1).tolist()):
        if gain > max(error, best_gain):
            best, best_gain = number, gain
    return best


def best_temperature(
    logits: Tensor, targets: Targets, item_weights: Tensor, largest: float = LARGEST_TEMPERATURE
) -> Tensor:
    """Return the temperature that maximises the likelihood of the targets under logits / temperature.

    It is the best of 30 values from 0.2 to 30 with equal ratios, and of further ones up to `largest` with the same
    ratio; 1 if no item counts, and for numbers.

    Args:
        logits: Logits of items that the fit did not see, (..., n, count).
        targets: The targets of these items.
        item_weights: Weights of the items, (n,).
        largest: The largest temperature: more than 30 for logits without a scale of their own.

    Returns:
        The temperatures, (...).

    Example:
        >>> targets = Targets.classes(torch.tensor([0, 1]), count=2)
        >>> best_temperature(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), targets, torch.ones(2))
        tensor(30.)
    """
    if targets.kind == "numbers" or not item_weights.any():
        return logits.new_ones(logits.shape[:-2])
    step = math.log(LARGEST_TEMPERATURE / SMALLEST_TEMPERATURE) / (TEMPERATURES - 1)
    count = 1 + round(math.log(largest / SMALLEST_TEMPERATURE) / step)
    values = [round(SMALLEST_TEMPERATURE * math.exp(number * step), 6) for number in range(count)]
    candidates = logits.new_tensor(values)
    divided = logits[..., None, :, :] / candidates[:, None, None]  # (..., temperatures, n, count)
    return candidates[mean_log_likelihood(divided, targets, item_weights).argmax(-1)]


def expected_calibration_error(probabilities: Tensor, codes: Tensor, bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The items are sorted into bins of equal width by the probability of their predicted class. The error is the mean of
    |accuracy - mean probability| over the bins, weighted with the number of items.

    Args:
        probabilities: Probabilities of the classes, (m, classes).
        codes: The true classes, (m,).
        bins: Number of bins.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 1, 0]))
        0.0
    """
    confidence, predicted = probabilities.double().max(1)
    return error_of_confidence(confidence, predicted == codes, bins)


def error_of_confidence(confidence: Tensor, is_right: Tensor, bins: int = 10) -> float:
    """Return the expected calibration error of predictions; see `expected_calibration_error`.

    Args:
        confidence: Probability of the predicted class, (m,).
        is_right: Whether it is the true class, (m,).
        bins: Number of bins.

    Example:
        >>> round(error_of_confidence(torch.tensor([0.9, 0.9]), torch.tensor([True, True])), 6)
        0.1
    """
    if not len(confidence):
        return 0.0
    _, probabilities, right = sums_by_confidence(confidence, is_right, bins).unbind(1)
    return float((right - probabilities).abs().sum() / len(confidence))


def sums_by_confidence(confidence: Tensor, is_right: Tensor, bins: int = 10) -> Tensor:
    """Return of each bin of probabilities: the predictions, the sum of their probabilities, and those that are right.

    Args:
        confidence: Probability of the predicted class, (m,).
        is_right: Whether it is the true class, (m,).
        bins: Number of bins of equal width.

    Returns:
        Sums, (bins, 3), in float64.

    Example:
        >>> sums_by_confidence(torch.tensor([0.75, 0.25, 0.25]), torch.tensor([True, False, True]), bins=2)
        tensor([[2.0000, 0.5000, 1.0000],
                [1.0000, 0.7500, 1.0000]], dtype=torch.float64)
    """
    confidence, is_right = confidence.double(), is_right.double()
    bin_number = (confidence * bins).long().clamp_max(bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, is_right], 1)
    return values.new_zeros(bins, 3).index_add(0, bin_number, values)
