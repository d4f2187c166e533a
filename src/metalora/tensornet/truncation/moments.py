"""Moments of a gradient (of Adam, say) after a change of basis."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.gram import bond_axis, mode_product
from metalora.tensornet.topology import FactorBonds, classify_topology, leaf_to_root_edges


def transport_moments(
    factor_bonds: FactorBonds,
    old: Sequence[Tensor],
    new: Sequence[Tensor],
    moments: Sequence[Tensor],
    *,
    squared: bool,
) -> list[Tensor]:
    """Express a moment of the gradient in the basis of new factors.

    Args:
        factor_bonds: The bonds of every factor.
        old: The factors before, (n, *bonds) each.
        new: The factors after, (n, *bonds) each; the ranks may be smaller.
        moments: A moment of the gradient of every old factor, of the factor's shape.
        squared: Whether it is a moment of squares; the result is then a diagonal estimate.

    Returns:
        A moment of every new factor, of its shape; exact for the mean if the tensor has not changed.

    Raises:
        ValueError: A ring, whose truncation is a fit and not a change of basis.

    Example:
        >>> old, new = [torch.ones(4, 1), torch.ones(9, 1)], [torch.ones(4, 1) / 2, 2 * torch.ones(9, 1)]
        >>> gradients = [torch.ones(4, 1), torch.ones(9, 1)]
        >>> first, _ = transport_moments([["r"], ["r"]], old, new, gradients, squared=False)
        >>> float(first[0])  # the other factor has doubled
        2.0
    """
    topology = classify_topology(factor_bonds)
    if topology == "ring":
        raise ValueError("the truncated ring is a fit, not a change of basis: moments are not carried over, reset them")
    old, new, moments = ([tensor.double() for tensor in tensors] for tensors in (old, new, moments))
    transport = _transport_columns if topology == "shared bond" else _transport_tree
    return transport(factor_bonds, old, new, moments, squared)


def _transport_tree(
    factor_bonds: FactorBonds, old: Sequence[Tensor], new: Sequence[Tensor], moments: Sequence[Tensor], squared: bool
) -> list[Tensor]:
    """On every bond, X = argmin |L X - L'| and Y = pinv X, L being all factors beyond the bond, seen from the root.

    The new factors are the old ones with X on the child's side and Y on the parent's, hence the gradients g Y' and
    X' g. Moments of squares: the entries of X and Y are squared.

    X is (old bond, new bond), Y (new bond, old bond); factors and moments are (n, *bonds).
    """
    # both (n, *bonds), with the bonds towards the children that are done contracted
    grams, crosses = list(old), list(old)
    transported = list(moments)
    for child, bond, parent in leaf_to_root_edges(factor_bonds, len(factor_bonds) - 1):
        child_axis = bond_axis(factor_bonds[child], bond)
        parent_axis = bond_axis(factor_bonds[parent], bond)
        # (n · other bonds, bond) each
        old_columns, gram_columns, cross_columns, new_columns = (
            tensor.movedim(child_axis, -1).flatten(0, -2)
            for tensor in (old[child], grams[child], crosses[child], new[child])
        )
        gram = old_columns.mT @ gram_columns  # <L, L>
        cross = cross_columns.mT @ new_columns  # <L, L'>
        change = torch.linalg.pinv(gram, hermitian=True) @ cross
        inverse = torch.linalg.pinv(change)  # not square after a truncation
        if squared:
            change, inverse = change.square(), inverse.square()
        transported[child] = mode_product(transported[child], child_axis, inverse.mT)
        transported[parent] = mode_product(transported[parent], parent_axis, change)
        grams[parent] = mode_product(grams[parent], parent_axis, gram)
        crosses[parent] = mode_product(crosses[parent], parent_axis, cross)
    return transported


def _transport_columns(
    factor_bonds: FactorBonds, old: Sequence[Tensor], new: Sequence[Tensor], moments: Sequence[Tensor], squared: bool
) -> list[Tensor]:
    """Column by column, the gradient of the nearest old column times the growth of the other factors; (n, r) each."""
    old_rank, new_rank = old[0].shape[1], new[0].shape[1]  # factors are (n, r)
    nearest = torch.arange(old_rank, device=old[0].device)  # without truncation the columns keep their order
    if new_rank < old_rank:
        cosines = [_unit_columns(before).mT @ _unit_columns(after) for before, after in zip(old, new, strict=True)]
        nearest = torch.stack(cosines).prod(0).abs().argmax(0)
    old = [factor[:, nearest] for factor in old]
    squares = torch.stack([before.square().sum(0) for before in old])  # (factors, r)
    inner_products = torch.stack([(before * after).sum(0) for before, after in zip(old, new, strict=True)])
    growth = torch.where(squares > 0, inner_products / squares.clamp_min(1e-300), 1.0)
    transported: list[Tensor] = []
    for number, moment in enumerate(moments):
        growth_of_others = torch.cat([growth[:number], growth[number + 1 :]]).prod(0)  # (r,)
        factor = growth_of_others.square() if squared else growth_of_others
        transported.append(moment[:, nearest] * factor)
    return transported


def _unit_columns(tensor: Tensor) -> Tensor:
    """Columns (n, r) of norm one; a column of zeros stays zero."""
    unit: Tensor = tensor / tensor.norm(dim=0).clamp_min(1e-300)
    return unit
