"""The kernel of weighted features, and ridge regression with a kernel.

Shapes: n items of the support set, m other items, d features, t outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalora._util.sending import sent


def linear_and_rbf(left: Tensor, right: Tensor) -> Tensor:
    """Return the kernel k(a, b) = <a, b> / 2 + exp(-|a - b|^2 / 4) / 2 of weighted features.

    Args:
        left: Weighted features, (m, d).
        right: Weighted features, (n, d).

    Returns:
        Kernel values, (m, n).

    Example:
        >>> linear_and_rbf(torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]]))
        tensor([[ 1.0000, -0.3161]])
    """
    products = left @ right.mT
    return kernel_of_distances(products, squared_distances(left, right, products))


def kernel_of_distances(products: Tensor, distances: Tensor) -> Tensor:
    """Return `linear_and_rbf` of rows whose inner products and squared distances are known, both (m, n).

    Example:
        >>> kernel_of_distances(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([[ 1.0000, -0.3161]])
    """
    return products / 2 + torch.exp(-distances / 4) / 2


def kernel_of_products(products: Tensor) -> Tensor:
    """Return the kernel `linear_and_rbf` of a set with itself from its inner products.

    Args:
        products: Inner products of the weighted features, (n, n).

    Returns:
        Kernel values, (n, n).

    Example:
        >>> kernel_of_products(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        tensor([[ 1.0000, -0.3161],
                [-0.3161,  1.0000]])
    """
    return products / 2 + torch.exp(-distances_of_products(products) / 4) / 2


def distances_of_products(products: Tensor) -> Tensor:
    """Return |a - b|^2 of each pair of a set, (n, n), from its inner products (n, n)."""
    norms = products.diagonal()
    return (norms[:, None] + norms - 2 * products).clamp_min(0)


def squared_distances(
    left: Tensor, right: Tensor, products: Tensor | None = None, right_norms: Tensor | None = None
) -> Tensor:
    """Return |a - b|^2 of each pair of rows, (m, n).

    Args:
        left: Features, (m, d).
        right: Features, (n, d).
        products: The inner products of the rows, (m, n), if they are computed already.
        right_norms: The squared norms of the rows of `right`, (n,), if they are computed already.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([[25.]])
    """
    products = left @ right.mT if products is None else products
    right_norms = right.square().sum(1) if right_norms is None else right_norms
    left_norms = right_norms if left is right else left.square().sum(1)
    norms = left_norms[:, None] + right_norms
    return (norms - 2 * products).clamp_min(0)


@dataclass(frozen=True)
class FeatureKernel:
    """The kernel `linear_and_rbf` of all columns, or its mean with the same kernel of the first columns alone.

    Attributes:
        frozen_width: Number of first columns that have a kernel of their own; 0: the kernel of all columns alone.
        frozen_scale: Factor that gives the weights of the first columns a sum of squares of 1.
    """

    frozen_width: int = 0
    frozen_scale: float = 1.0

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Return kernel values, (m, n), of weighted features (m, d) and (n, d)."""
        return self.completed(linear_and_rbf(left, right), left, right)

    def completed(self, of_all: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return kernel values, (m, n), of features (m, d) and (n, d) whose `linear_and_rbf` is computed already."""
        if not self.frozen_width:
            return of_all
        left, right = left[:, : self.frozen_width], right[:, : self.frozen_width]
        return (of_all + linear_and_rbf(left * self.frozen_scale, right * self.frozen_scale)) / 2


class RidgeFit(NamedTuple):
    """A kernel ridge regression, or several with an axis "..." of ridges.

    Attributes:
        coefficients: Dual coefficients (K + ridge I)^-1 Y, (..., n, t).
        leave_one_out: Scores of each item by the regression on the other items, (..., n, t).
        ridge: The ridge, (...).
        inverse: The inverse (K + ridge I)^-1, (..., n, n).
    """

    coefficients: Tensor
    leave_one_out: Tensor
    ridge: Tensor
    inverse: Tensor

    def leave_group_out(self, targets: Tensor, groups: Tensor) -> Tensor:
        """Return the scores of each group by the regression on the others, Y_g - H_gg^-1 a_g, (..., n, t).

        Args:
            targets: Centred targets Y, (n, t).
            groups: Group of each item, (n,).
        """
        blocks = self.inverse * (groups[:, None] == groups)
        scores: Tensor = targets - torch.linalg.solve(blocks, self.coefficients)
        return scores


def ridge_inverse(kernel: Tensor, ridge: Tensor | float) -> Tensor:
    """Return (K + ridge I)^-1, (..., n, n), of kernels K, (..., n, n); it can be differentiated.

    Example:
        >>> ridge_inverse(torch.eye(2), 1.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    inverse: Tensor = torch.linalg.inv(kernel + ridge * identity)  # its gradient is two products; Cholesky's is slower
    return inverse


def fit_ridge(kernel: Tensor, targets: Tensor, ridge: Tensor) -> RidgeFit:
    """Fit a kernel ridge regression; it can be differentiated.

    a = (K + ridge I)^-1 Y; the leave-one-out score of item i is Y_i - a_i / [(K + ridge I)^-1]_ii.

    Args:
        kernel: Kernel K of the support set, (n, n).
        targets: Centred targets Y, (n, t).
        ridge: The ridge, a scalar.

    Example:
        >>> fit = fit_ridge(torch.eye(2), torch.tensor([[1.0], [-1.0]]), torch.tensor(1.0))
        >>> fit.coefficients[:, 0]
        tensor([ 0.5000, -0.5000])
    """
    inverse = ridge_inverse(kernel, ridge)
    coefficients = inverse @ targets
    return RidgeFit(coefficients, targets - coefficients / inverse.diagonal()[:, None], ridge, inverse)


def ridge_path(kernel: Tensor, targets: Tensor, ridges: tuple[float, ...]) -> RidgeFit:
    """Fit with each of several ridges, from one eigendecomposition.

    Args:
        kernel: Kernel of the support set, (n, n), in float64.
        targets: Centred targets, (n, t), in float64.
        ridges: The ridges.

    Returns:
        The fits; the first axis of all tensors is that of the ridges.

    Example:
        >>> items = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> fits = ridge_path(linear_and_rbf(items, items), items, (0.001, 1.0))
        >>> [round(error, 2) for error in (fits.leave_one_out - items).square().mean((1, 2)).tolist()]
        [0.0, 0.06]
    """
    eigenvalues, vectors = torch.linalg.eigh(kernel)
    candidates = sent(torch.tensor(ridges, dtype=kernel.dtype), kernel.device)
    scales = 1 / (eigenvalues.clamp_min(0)[None] + candidates[:, None])  # (ridges, n)
    inverse = (vectors * scales[:, None]) @ vectors.mT  # (ridges, n, n)
    coefficients = inverse @ targets
    diagonal = inverse.diagonal(dim1=1, dim2=2)[..., None]
    return RidgeFit(coefficients, targets - coefficients / diagonal, candidates, inverse)


def pivots(kernel: Tensor, count: int) -> Tensor:
    """Return items that represent a support set: the pivots of a Cholesky factorisation of its kernel.

    Each pivot is the item that the pivots before it explain least.

    Args:
        kernel: Kernel of the support set, (n, n).
        count: Number m of pivots.

    Returns:
        Positions of the items, sorted, (m,).

    Example:
        >>> pivots(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]), 2)
        tensor([0, 2])
    """
    residual = kernel.diagonal().clone()
    columns = kernel.new_zeros(count, len(kernel))
    chosen: list[int] = []
    for number in range(count):
        pivot = int(residual.argmax())
        chosen.append(pivot)
        column = kernel[pivot] - columns[:number, pivot] @ columns[:number]
        columns[number] = column / residual[pivot].clamp_min(1e-12).sqrt()
        residual = (residual - columns[number].square()).clamp_min(0)
        residual[chosen] = -1  # an item is chosen once
    return torch.tensor(sorted(chosen), device=kernel.device)
