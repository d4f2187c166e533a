"""Alternating least squares: each factor in turn is the best one for the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.tensornet.gram import distance, environment, norm, project_onto
from metalora.tensornet.topology import FactorBonds

SMALLEST_EIGENVALUE = 1e-14  # of a Gram matrix's largest one (1e-7 of the singular values): pinv drops smaller ones

Factors = list[Tensor]


@dataclass(frozen=True)
class Stopping:
    """When alternating least squares stops.

    Attributes:
        passes: The largest number of passes over all factors.
        smallest_gain: A pass that lowers the error by less than this fraction is the last one.
        negligible_error: As a fraction of |T|: no pass is made below it.
    """

    passes: int
    smallest_gain: float
    negligible_error: float


AFTER_TRUNCATION = Stopping(passes=30, smallest_gain=1e-3, negligible_error=1e-7)


def alternate(
    one_pass: Callable[[Factors], tuple[Factors, float]],
    factors: Factors,
    error: float,
    reference_norm: float,
    stopping: Stopping,
) -> tuple[Factors, float]:
    """Repeat passes over all factors as long as they lower the error.

    Args:
        one_pass: Improves factors, and measures their error |T - T'|.
        factors: The start.
        error: The error of the start; infinity if it is not known.
        reference_norm: |T|.
        stopping: When to stop.

    Returns:
        The best factors and their error; a pass that raises the error (by rounding) is dropped.

    Example:
        >>> def halve(factors):
        ...     return [factors[0] / 2], float(factors[0]) / 2
        >>> stopping = Stopping(passes=3, smallest_gain=1e-3, negligible_error=1e-7)
        >>> alternate(halve, [torch.tensor(8.0)], error=8.0, reference_norm=8.0, stopping=stopping)
        ([tensor(1.)], 1.0)
    """
    for _ in range(stopping.passes):
        if error <= stopping.negligible_error * reference_norm:
            break
        # if the error of the start is infinite, so is the first gain, and the loop goes on
        trial, trial_error = one_pass(factors)
        if trial_error >= error:
            break
        gain = error - trial_error
        converged = gain < stopping.smallest_gain * error
        factors, error = trial, trial_error  # a pass that gains little is the last one, but its gain is kept
        if converged:
            break
    return factors, error


def best_factor(projection: Tensor, gram: Tensor) -> Tensor:
    """Solve the normal equations of one factor: X = P G^+.

    Args:
        projection: P (n, m), the reference contracted with all other factors.
        gram: G (m, m), the Gram matrix of all other factors at the bonds of this one.

    Returns:
        X (n, m), the factor with the smallest |T - T'| for these others.

    Example:
        >>> columns = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)  # the other factor, (2, 2)
        >>> reference = torch.ones(3, 2, dtype=torch.float64)
        >>> best_factor(reference @ columns, columns.mT @ columns) @ columns.mT
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    # a Gram matrix is symmetric, so its pseudo-inverse is that of its eigenvalues
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=SMALLEST_EIGENVALUE)
    return projection @ inverse


def fit_to_reference(
    factor_bonds: FactorBonds,
    reference: Sequence[Tensor],
    start: Sequence[Tensor],
    passes: int = AFTER_TRUNCATION.passes,
) -> Factors:
    """Fit a network to another one of the same topology; |T - T'| never rises.

    Args:
        factor_bonds: The bonds of every factor, in any topology.
        reference: The factors of T, (n, *bonds) each.
        start: The factors of T' at the start, with the ranks that they are to keep.
        passes: The largest number of passes over all factors.

    Returns:
        The fitted factors.

    Example:
        >>> reference = [torch.randn(5, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)]
        >>> start = [torch.randn(5, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)]
        >>> fitted = fit_to_reference([["r"], ["r"]], reference, start)
        >>> distance([["r"], ["r"]], reference, fitted) < 1e-6
        True
    """

    def one_pass(factors: Factors) -> tuple[Factors, float]:
        factors = list(factors)
        for number, factor in enumerate(factors):
            width = factor[0].numel()  # the product of the sizes of its bonds
            gram = environment(factor_bonds, factors, factors, [number]).reshape(width, width)  # from (*bonds, *bonds)
            projection = project_onto(factor_bonds, reference, factors, number).flatten(1)  # (n, width)
            factors[number] = best_factor(projection, gram).reshape(factor.shape)
        return factors, distance(factor_bonds, reference, factors)

    stopping = Stopping(passes, AFTER_TRUNCATION.smallest_gain, AFTER_TRUNCATION.negligible_error)
    error = distance(factor_bonds, reference, start)
    factors, _ = alternate(one_pass, list(start), error, norm(factor_bonds, reference), stopping)
    return factors
