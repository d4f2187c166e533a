"""Truncation of trees: chains (tensor trains) and Tucker networks among them, by HOSVD and HOOI.

Every bond joins two factors and there is no cycle, so that each bond splits the factors into two groups and the tensor
into a matrix of two sides. All factors but one can be made orthonormal towards it; then only small matrices are
decomposed, and the dense tensor is never formed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metalora.tensornet.gram import bond_axis, mode_product, project_onto, tail_norms
from metalora.tensornet.topology import FactorBonds, edges, leaf_to_root_edges, most_connected_factor
from metalora.tensornet.truncation.target import TruncationTarget

HOOI_PASSES = 4  # after a truncation; each visits every bond once


def truncate_tree(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """Truncate all bonds of a tree at once by their singular values, then improve the result by HOOI.

    HOSVD (De Lathauwer, De Moor, Vandewalle 2000a) on every bond of a tree. The projections on the bonds are orthogonal
    and the tensor is projected on all of them, so that |T - T'|^2 <= the sum of the discarded squares, which is at most
    the number of bonds times the square of the best possible error. HOOI never raises the error.

    A tensor train is a tree, too. On 200 random trains the error was 0.94 to 1.0001 times that of truncating one bond
    after another (Oseledets 2011, Algorithm 2) and fitting core by core, in half the time.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        target: What chooses the ranks.

    Returns:
        The truncated factors, and bond -> the norm that the bond discarded.

    Example:
        >>> factors = [torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.eye(3)]
        >>> target = TruncationTarget([["r"], ["r"]], (3, 3), {"r": 2})
        >>> truncated, discarded = truncate_tree([["r"], ["r"]], factors, target)
        >>> [tuple(factor.shape) for factor in truncated], discarded
        ([(3, 2), (3, 2)], {'r': 1.0})
    """
    center = most_connected_factor(factor_bonds)  # the core of Tucker: then every leaf is one QR away
    reference = orthogonalize(factor_bonds, tensors, center)
    decompositions = bond_decompositions(factor_bonds, reference, center)
    ranks = target.choose({bond: values for bond, (values, _) in decompositions.items()})
    discarded: dict[str, float] = {}
    for bond, (values, _) in decompositions.items():
        rank = ranks[bond]
        discarded[bond] = float(tail_norms(values)[rank]) if rank < len(values) else 0.0
    leading = {bond: vectors[:, : ranks[bond]] for bond, (_, vectors) in decompositions.items()}  # (bond, rank)
    approximation = project_bonds(factor_bonds, reference, leading)
    if any(discarded.values()):  # otherwise T' is T up to rounding
        approximation = hooi(factor_bonds, reference, approximation)
    return approximation, discarded


def hooi(
    factor_bonds: FactorBonds, reference: Sequence[Tensor], approximation: Sequence[Tensor], passes: int = HOOI_PASSES
) -> list[Tensor]:
    """Improve a truncated tree bond by bond (higher-order orthogonal iteration, De Lathauwer et al. 2000b).

    If all other factors are orthonormal towards two neighbours, the best pair of neighbours is the reference projected
    onto the others, truncated by its singular values. |T - T'| never rises. On a train this is two-site DMRG.

    Args:
        factor_bonds: The bonds of every factor.
        reference: The factors of T, (n, *bonds) each.
        approximation: The factors of T', with the ranks that they are to keep.
        passes: How often each bond is visited.

    Returns:
        Better factors of T'.

    Example:
        >>> reference = [torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))]
        >>> better = hooi([["r"], ["r"]], reference, [torch.ones(3, 2), torch.eye(3)[:, :2]])
        >>> (better[0] @ better[1].mT).diagonal().abs().round(decimals=4)
        tensor([3., 2., 0.])
    """
    factors = list(approximation)
    for _ in range(passes):
        for bond, (first, second) in edges(factor_bonds).items():
            first_axis = bond_axis(factor_bonds[first], bond)
            second_axis = bond_axis(factor_bonds[second], bond)
            # then all factors but the pair are orthonormal towards it; what `second` is does not matter
            factors = orthogonalize(factor_bonds, factors, first)
            # (axes of the first factor but the bond, those of the second): as many as the factor has bonds
            pair = project_onto(factor_bonds, reference, factors, first, second, summed=[bond])
            split = len(factor_bonds[first])
            first_shape, second_shape = pair.shape[:split], pair.shape[split:]
            matrix = pair.reshape(first_shape.numel(), second_shape.numel())
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            rank = min(factors[first].shape[first_axis], len(s))  # a bond may be wider than its pair of neighbours
            weighted = (s[:rank, None] * v[:rank]).mT  # (axes of the second factor, rank)
            factors[first] = u[:, :rank].reshape(*first_shape, rank).movedim(-1, first_axis)
            factors[second] = weighted.reshape(*second_shape, rank).movedim(-1, second_axis)  # (n, *bonds)
    return factors


def orthogonalize(factor_bonds: FactorBonds, tensors: Sequence[Tensor], root: int) -> list[Tensor]:
    """Make all factors but the root orthonormal towards the root; the tensor stays the same.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        root: The number of the factor that keeps the norm of the tensor.

    Returns:
        Factors whose matrices (all other axes, bond towards the root) have orthonormal columns.

    Example:
        >>> factors = orthogonalize([["r"], ["r"]], [torch.ones(4, 1), torch.ones(9, 1)], root=1)
        >>> [round(float(factor.norm()), 4) for factor in factors]
        [1.0, 6.0]
    """
    return orthogonalize_with_bases(factor_bonds, tensors, root)[0]


def orthogonalize_with_bases(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], root: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """`orthogonalize`, and the old basis of every bond in the new one.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        root: The number of the factor that keeps the norm of the tensor.

    Returns:
        The factors, and bond -> R (new bond, old bond): everything beyond the bond, seen from the root, was Q R and is
        Q now, with orthonormal columns.

    Example:
        >>> _, bases = orthogonalize_with_bases([["r"], ["r"]], [torch.ones(4, 1), torch.ones(9, 1)], root=1)
        >>> round(float(bases["r"].abs()), 4)
        2.0
    """
    factors = list(tensors)
    bases: dict[str, Tensor] = {}
    for child, bond, parent in leaf_to_root_edges(factor_bonds, root):
        child_axis = bond_axis(factor_bonds[child], bond)
        columns = factors[child].movedim(child_axis, -1)  # (n, *other bonds, bond)
        q, r = torch.linalg.qr(columns.flatten(0, -2))  # (n · other bonds, k), (k, bond)
        factors[child] = q.reshape(*columns.shape[:-1], q.shape[1]).movedim(-1, child_axis)
        factors[parent] = mode_product(factors[parent], bond_axis(factor_bonds[parent], bond), r.mT)
        bases[bond] = r
    return factors, bases


def bond_decompositions(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], root: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Decompose the tensor at every bond, without forming it.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, orthonormal towards the root.
        root: The number of the root.

    Returns:
        Bond -> (values, vectors): the singular values (r,) of the matrix of the bond's two sides, the largest first,
        and the singular vectors of the child's side as columns in the basis of the bond, (bond, r).

    Example:
        >>> factors = [torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))]
        >>> values, vectors = bond_decompositions([["r"], ["r"]], factors, root=1)["r"]
        >>> values, vectors.shape
        (tensor([3., 2., 1.]), torch.Size([3, 3]))
    """
    with_norm = {root: tensors[root]}  # every factor as it is when the norm of the tensor lies in it
    decompositions: dict[str, tuple[Tensor, Tensor]] = {}
    for child, bond, parent in reversed(leaf_to_root_edges(factor_bonds, root)):
        # (all other axes of the parent, bond): the two sides of the bond are the parent with the norm, and an
        # orthonormal child
        columns = with_norm[parent].movedim(bond_axis(factor_bonds[parent], bond), -1).flatten(0, -2)
        r = torch.linalg.qr(columns, mode="r").R  # (k, bond); Q does not change the singular values
        _, values, vectors = torch.linalg.svd(r, full_matrices=False)
        decompositions[bond] = values, vectors.mT
        # R on the child's side of the bond: everything beyond it is orthonormal
        with_norm[child] = mode_product(tensors[child], bond_axis(factor_bonds[child], bond), r.mT)
    return decompositions


def tree_singular_values(factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the singular values of a chain or tree at every bond.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.

    Returns:
        Bond -> the singular values (r,) of the matrix of the bond's two sides, the largest first.

    Example:
        >>> left, right = torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2)
        >>> tree_singular_values([["r"], ["r"]], [left, right])
        {'r': tensor([3., 2.])}
    """
    center = most_connected_factor(factor_bonds)
    decompositions = bond_decompositions(factor_bonds, orthogonalize(factor_bonds, tensors, center), center)
    return {bond: values for bond, (values, _) in decompositions.items()}


def project_bonds(factor_bonds: FactorBonds, tensors: Sequence[Tensor], vectors: Mapping[str, Tensor]) -> list[Tensor]:
    """Project every bond on the span of orthonormal vectors: V V' is put on the bond, one V into each factor.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.
        vectors: Bond -> orthonormal columns V (bond, r).

    Returns:
        The factors, with r in place of each bond.

    Example:
        >>> short = project_bonds([["r"], ["r"]], [torch.ones(4, 3), torch.ones(9, 3)], {"r": torch.eye(3)[:, :2]})
        >>> [tuple(factor.shape) for factor in short]
        [(4, 2), (9, 2)]
    """
    factors: list[Tensor] = []
    for bonds, tensor in zip(factor_bonds, tensors, strict=True):
        for bond in bonds:
            tensor = mode_product(tensor, bond_axis(bonds, bond), vectors[bond])
        factors.append(tensor)
    return factors
