"""A projection to a few dimensions that keeps norms, and inner products with a few vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LEVEL = 127


@dataclass(frozen=True)
class Projection:
    """Coordinates in a small orthonormal basis, and the length of what lies outside of it.

    A query z becomes (c, |z - B c|, 0) and an item of the support set (c, 0, |z - B c|), with c = B^T z. The inner
    product of a query and an item is then that of their coordinates, and their norms stay, so that a kernel of inner
    products and distances needs no other code.

    Attributes:
        levels: The basis before mixing, int8 (d, r).
        mixing: Scales and rotations that make the columns of levels @ mixing orthonormal, (r, r).
    """

    levels: Tensor
    mixing: Tensor

    def basis(self) -> Tensor:
        """Return the basis B, (d, r)."""
        return self.levels.to(self.mixing) @ self.mixing

    def of_queries(self, features: Tensor) -> Tensor:
        """Return the coordinates, (m, r + 2), of queries (m, d)."""
        coordinates, rest = self._split(features)
        return torch.cat([coordinates, rest, torch.zeros_like(rest)], 1)

    def of_items(self, features: Tensor) -> Tensor:
        """Return the coordinates, (n, r + 2), of items (n, d) of the support set."""
        coordinates, rest = self._split(features)
        return torch.cat([coordinates, torch.zeros_like(rest), rest], 1)

    def of_directions(self, directions: Tensor) -> Tensor:
        """Return the coordinates, (r + 2, k), of directions (d, k) of which nothing lies outside of the basis."""
        coordinates = self.basis().mT @ directions
        return torch.cat([coordinates, coordinates.new_zeros(2, directions.shape[1])])

    def to(self, reference: Tensor) -> Projection:
        """Return the projection in the dtype and on the device of another tensor."""
        return Projection(self.levels.to(reference.device), self.mixing.to(reference))

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates (m, r) and the length of the rest (m, 1)."""
        coordinates = features @ self.basis()
        rest = features.square().sum(1, keepdim=True) - coordinates.square().sum(1, keepdim=True)
        return coordinates, rest.clamp_min(0).sqrt()


def projection_onto(directions: Tensor, items: Tensor, size: int) -> Projection:
    """Return a projection whose basis has given directions first, and then the principal directions of items.

    Args:
        directions: Directions that matter most, (d, k).
        items: Items whose inner products with queries matter, (n, d).
        size: Number r of dimensions, at most d.

    Example:
        >>> projection = projection_onto(torch.eye(4)[:, :1], torch.rand(3, 4), size=2)
        >>> projection.of_items(torch.rand(3, 4)).shape
        torch.Size([3, 4])
    """
    first = _orthonormal(directions)[:, :size]
    rest = items - items @ first @ first.mT
    basis = torch.cat([first, _principal(rest, size - first.shape[1])], 1)
    scales = (basis.abs().amax(0) / LARGEST_LEVEL).clamp_min(1e-30)
    levels = (basis / scales).round().clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    return Projection(levels.to(torch.int8), _inverse_root(levels.mT @ levels))


def _orthonormal(directions: Tensor) -> Tensor:
    """Return an orthonormal basis of directions (d, k) without those that are combinations of others."""
    vectors, singular_values, _ = torch.linalg.svd(directions, full_matrices=False)
    is_kept = singular_values > 1e-6 * singular_values.amax().clamp_min(1e-30)
    kept: Tensor = vectors[:, is_kept]
    return kept


def _principal(items: Tensor, count: int) -> Tensor:
    """Return the principal directions of items (n, d), at most `count`, orthonormal, (d, count')."""
    eigenvalues, vectors = torch.linalg.eigh(items @ items.mT)  # in ascending order
    is_kept = eigenvalues > 1e-9 * eigenvalues.amax().clamp_min(1e-30)
    is_kept[: max(0, len(items) - count)] = False
    directions: Tensor = items.mT @ (vectors[:, is_kept] * eigenvalues[is_kept].rsqrt())
    return directions


def _inverse_root(matrix: Tensor) -> Tensor:
    """Return the inverse square root of a positive semi-definite matrix, (r, r); 0 in directions of eigenvalue 0."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    is_kept = eigenvalues > 1e-6 * eigenvalues.amax()
    roots = torch.where(is_kept, eigenvalues.clamp_min(1e-30).rsqrt(), torch.zeros_like(eigenvalues))
    root: Tensor = (vectors * roots) @ vectors.mT
    return root
