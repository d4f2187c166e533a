"""The change of basis between two forms of a network, and what it makes of a gradient's moments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.topology import Terms, axis, classify_topology, leaf_to_root_edges, mode_product


def transport_moments(
    terms: Terms, old: Sequence[Tensor], new: Sequence[Tensor], moments: Sequence[Tensor], *, squared: bool
) -> list[Tensor]:
    """A gradient's moment in the basis of `new`, for factors (n, *bonds); of squares, a diagonal estimate.

    Exact for the mean where the network has not changed. ValueError for a ring, whose fit is no change of basis.
    """
    kind = classify_topology(terms)
    if kind == "ring":
        raise ValueError("the truncated ring is a fit, no change of basis: moments are not carried over, reset them")
    old, new, moments = ([tensor.double() for tensor in some] for some in (old, new, moments))
    return (_columns if kind == "shared bond" else _tree)(terms, old, new, moments, squared)


def _tree(
    terms: Terms, old: Sequence[Tensor], new: Sequence[Tensor], moments: Sequence[Tensor], squared: bool
) -> list[Tensor]:
    """g' = X' g of a bond's nearer end and g Y' of its farther one: X = argmin |L X - L'|, Y = pinv X.

    L is all that lies beyond the bond, seen from the last factor. Of squares, with the entries of X and Y squared.
    """
    grams, crosses, found = list(old), list(old), list(moments)  # (n, *bonds), of whose bonds the children's are done
    for child, bond, parent in leaf_to_root_edges(terms, len(terms) - 1):
        at, to = axis(terms[child], bond), axis(terms[parent], bond)
        rows, seen, target = (t.movedim(at, -1).flatten(0, -2) for t in (old[child], grams[child], crosses[child]))
        gram = rows.mT @ seen
        cross = target.mT @ new[child].movedim(at, -1).flatten(0, -2)
        change = torch.linalg.pinv(gram, hermitian=True) @ cross
        back = torch.linalg.pinv(change)
        x, y = (change.square(), back.square()) if squared else (change, back)
        found[child], found[parent] = mode_product(found[child], at, y.mT), mode_product(found[parent], to, x)
        grams[parent], crosses[parent] = mode_product(grams[parent], to, gram), mode_product(crosses[parent], to, cross)
    return found


def _columns(
    terms: Terms, old: Sequence[Tensor], new: Sequence[Tensor], moments: Sequence[Tensor], squared: bool
) -> list[Tensor]:
    """Column by column, g'_n = g_n times what the other factors have grown by; a new column comes from the nearest."""
    rank, kept = old[0].shape[1], new[0].shape[1]
    nearest = torch.arange(rank, device=old[0].device)
    if kept < rank:
        cosines = [_unit(a).mT @ _unit(b) for a, b in zip(old, new, strict=True)]
        nearest = torch.stack(cosines).prod(0).abs().argmax(0)
    squares = torch.stack([a[:, nearest].square().sum(0) for a in old])
    growth = torch.stack([(a[:, nearest] * b).sum(0) for a, b in zip(old, new, strict=True)])
    growth = torch.where(squares > 0, growth / squares.clamp_min(1e-300), 1.0)
    others = [torch.cat([growth[:k], growth[k + 1 :]]).prod(0) for k in range(len(old))]
    return [m[:, nearest] * (o.square() if squared else o) for m, o in zip(moments, others, strict=True)]


def _unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.norm(dim=0).clamp_min(1e-300)
