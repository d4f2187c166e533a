"""Gauges: which of the many factors of one tensor are returned, and which factor has its norm.

A matrix and its inverse on a bond change the factors, not the tensor. After a truncation the factors are put in one
gauge, so that equal input gives equal output: each bond is in the basis of its singular vectors, and the largest entry
of each vector is positive.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.gram import bond_axis, mode_product
from metalora.tensornet.topology import FactorBonds, edges, leaf_to_root_edges
from metalora.tensornet.truncation.tree import bond_decompositions, orthogonalize, project_bonds

Gauge = Literal["left", "right", "balanced"]
SMALLEST_SCALE = 1e-12  # of the largest singular value: a balanced gauge divides by no smaller one


def largest_entry_signs(columns: Tensor) -> Tensor:
    """Return the sign of the largest entry of every column.

    Args:
        columns: (n, r).

    Returns:
        (r,), of 1 and -1.

    Example:
        >>> largest_entry_signs(torch.tensor([[1.0, 2.0], [-3.0, 1.0]]))
        tensor([-1.,  1.])
    """
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]  # (r,)
    # not torch.sign, whose zero would erase a column of zeros
    return torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


def norm_holder(factor_bonds: FactorBonds, gauge: Gauge) -> int:
    """Return the number of the factor that has the norm of the tensor in a gauge.

    Args:
        factor_bonds: The bonds of every factor.
        gauge: "left": the last factor, "right": the first one. A balanced gauge has no such factor; the last one is
            then the root of its signs.

    Example:
        >>> norm_holder([["a"], ["a", "b"], ["b"]], "left")
        2
    """
    return 0 if gauge == "right" else len(factor_bonds) - 1


def tree_in_gauge(factor_bonds: FactorBonds, tensors: Sequence[Tensor], gauge: Gauge) -> list[Tensor]:
    """Put a chain or tree in a gauge; the tensor stays the same.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        gauge: "left", "right": all factors but the root are orthonormal towards it (`norm_holder`). "balanced": each
            bond's singular values are shared by its two factors, S^1/2 each.

    Returns:
        The factors with each bond in the basis of its singular vectors, the largest entries positive.

    Example:
        >>> left, right = torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2)
        >>> tree_in_gauge([["r"], ["r"]], [left, right], "left")[1].norm(dim=0)  # the singular values
        tensor([3., 2.])
    """
    root = norm_holder(factor_bonds, gauge)
    factors = orthogonalize(factor_bonds, tensors, root)
    decompositions = bond_decompositions(factor_bonds, factors, root)
    # the vectors of a bond are a rotation, or fewer columns if the bond is wider than the tensor needs
    factors = project_bonds(factor_bonds, factors, {bond: vectors for bond, (_, vectors) in decompositions.items()})
    # leaf to root: a factor has the signs of its children's bonds before its own largest entries are read
    for child, bond, parent in leaf_to_root_edges(factor_bonds, root):
        child_axis = bond_axis(factor_bonds[child], bond)
        columns = factors[child].movedim(child_axis, -1).flatten(0, -2)  # (n · other bonds, bond)
        signs = largest_entry_signs(columns)
        scale = torch.ones_like(signs)
        if gauge == "balanced":
            # the child's side is orthonormal and the parent's has S: S^1/2 moves to the child
            values = decompositions[bond][0]
            scale = values.clamp_min(float(values.max()) * SMALLEST_SCALE).sqrt()
        factors[child] = mode_product(factors[child], child_axis, torch.diag(signs * scale))
        parent_axis = bond_axis(factor_bonds[parent], bond)
        factors[parent] = mode_product(factors[parent], parent_axis, torch.diag(signs / scale))  # 1 / signs = signs
    return factors


def ring_in_gauge(factor_bonds: FactorBonds, tensors: Sequence[Tensor], gauge: Gauge) -> list[Tensor]:
    """Put a ring in the gauge of the chain that it is when opened at its first bond; the tensor stays the same.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        gauge: As in `tree_in_gauge`.

    Example:
        >>> bonds = [["a", "b"], ["b", "c"], ["c", "a"]]
        >>> factors = [torch.ones(4, 1, 1) for _ in bonds]
        >>> [round(float(factor.norm()), 4) for factor in ring_in_gauge(bonds, factors, "left")]
        [1.0, 1.0, 8.0]
    """
    opened_bond = factor_bonds[0][0]
    ends = edges(factor_bonds)[opened_bond]
    chain_bonds = [[bond for bond in bonds if bond != opened_bond] for bonds in factor_bonds]
    chain = list(tensors)
    for number in ends:
        axis = bond_axis(factor_bonds[number], opened_bond)
        # (n, opened, other): the opened bond becomes a part of the open axis
        chain[number] = tensors[number].movedim(axis, 1).flatten(0, 1)  # (n · opened, other)
    factors = tree_in_gauge(chain_bonds, chain, gauge)
    for number in ends:
        axis = bond_axis(factor_bonds[number], opened_bond)
        size = len(tensors[number])
        # (n · opened, other) -> (n, opened, other), the opened bond then back in its place
        factors[number] = factors[number].reshape(size, -1, *factors[number].shape[1:]).movedim(1, axis)
    return factors


def columns_in_gauge(factor_bonds: FactorBonds, tensors: Sequence[Tensor], gauge: Gauge) -> list[Tensor]:
    """Put the columns of factors that share one bond (CP) in a gauge; the tensor stays the same.

    A column of zeros stays zero in its factor and leaves those of the other factors as long as any other, so that a
    gradient can still reach it.

    Args:
        factor_bonds: The bonds of every factor: one, the same for all.
        tensors: The factors, (n, r) each.
        gauge: "left", "right": columns have length one in all factors but the last (first), which has the norms.
            "balanced": a column has the same norm in all factors.

    Returns:
        The factors; the largest entry of each column is positive in all factors but the one that has the sign.

    Example:
        >>> factors = [torch.full((4, 1), 3.0), torch.ones(9, 1), torch.ones(1, 1)]
        >>> [float(factor.norm()) for factor in columns_in_gauge([["r"]] * 3, factors, "left")]
        [1.0, 1.0, 18.0]
    """
    holder = norm_holder(factor_bonds, gauge)
    norms = torch.stack([tensor.norm(dim=0) for tensor in tensors])  # (factors, r)
    norms = torch.where(norms > 0, norms, 1.0)  # a column of zeros is not scaled
    signs = torch.stack([largest_entry_signs(tensor) for tensor in tensors])  # (factors, r)
    # the product of the signs is that of the tensor, which the holder keeps
    signs[holder] = 1.0
    signs[holder] = signs.prod(0)
    if gauge == "balanced":
        new_norms = norms.log().mean(0).exp().expand_as(norms)  # geometric mean: the product of the norms stays
    else:
        new_norms = torch.ones_like(norms)
        new_norms[holder] = norms.log().sum(0).exp()  # the product of the norms
    scales = signs * new_norms / norms
    return [tensor * scale for tensor, scale in zip(tensors, scales, strict=True)]
