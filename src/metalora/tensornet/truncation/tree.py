"""Rank truncation of trees, of which Tucker is the star: higher-order singular value decomposition and iteration.

Every bond joins two factors and there is no cycle, so that a bond cuts the tensor into a matrix of two sides. Towards
a root every other factor can be made orthonormal; only small cores are decomposed, the tensor is never formed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metalora.tensornet.topology import (
    Terms,
    TruncationTarget,
    axis,
    edges,
    leaf_to_root_edges,
    mode_product,
    project_onto,
    tail_norms,
)

ITERATIONS = 4  # of HOOI after a truncation: each goes once over all bonds
SMALLEST = 1e-12  # of the largest singular value: what a balanced gauge divides by at least


def truncate_tree(
    terms: Terms, whole: Sequence[Tensor], goal: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """The truncated factors, and the norm that every bond discarded: |T - T'|^2 <= the sum of the squares.

    HOSVD (De Lathauwer, De Moor, Vandewalle 2000a), on every bond of the tree: QR of all factors towards the one with
    most bonds, the singular vectors of T as every bond cuts it, all of them truncated at once (a product of orthogonal
    projections, hence the bound: root of the number of bonds, times the best possible error). Then HOOI.
    """
    whole = orthogonal(terms, whole, _centre(terms))
    spectrum = spectra(terms, whole, _centre(terms))
    values = {bond: s for bond, (s, _) in spectrum.items()}
    ranks = goal.choose(values)
    discarded = {bond: float(tail_norms(s)[ranks[bond]]) if ranks[bond] < len(s) else 0.0 for bond, s in values.items()}
    mine = _projected(terms, whole, {bond: v[:, : ranks[bond]] for bond, (_, v) in spectrum.items()})
    return (hooi(terms, whole, mine) if any(discarded.values()) else mine), discarded


def hooi(terms: Terms, whole: Sequence[Tensor], mine: Sequence[Tensor], times: int = ITERATIONS) -> list[Tensor]:
    """Higher-order orthogonal iteration (De Lathauwer et al. 2000b): bond by bond, |T - T'| never rises.

    With all others orthonormal, the best pair of neighbours is T seen through the others, cut by its singular values.
    """
    mine = list(mine)
    for _ in range(times):
        for bond, (u, v) in edges(terms).items():
            at, to = axis(terms[u], bond), axis(terms[v], bond)
            mine = orthogonal(terms, mine, u)
            rank, pair = mine[u].shape[at], project_onto(terms, whole, mine, u, v, without=[bond])
            left, s, right = torch.linalg.svd(pair.flatten(0, len(terms[u]) - 1).flatten(1), full_matrices=False)
            rank, sides = min(rank, len(s)), (pair.shape[: len(terms[u])], pair.shape[len(terms[u]) :])
            mine[u] = left[:, :rank].unflatten(0, sides[0]).movedim(-1, at)
            mine[v] = (s[:rank, None] * right[:rank]).T.unflatten(0, sides[1]).movedim(-1, to)
    return mine


def in_gauge(terms: Terms, tensors: Sequence[Tensor], gauge: str) -> list[Tensor]:
    """The same tensor, every bond in its singular vectors, their largest entries positive, the norm where it belongs.

    left, right: in the last or the first factor, which is the root; balanced: shared alike over every bond.
    """
    root = 0 if gauge == "right" else len(terms) - 1
    tensors = orthogonal(terms, tensors, root)
    spectrum = spectra(terms, tensors, root)
    tensors = _projected(terms, tensors, {bond: v for bond, (_, v) in spectrum.items()})
    for child, bond, parent in leaf_to_root_edges(terms, root):
        columns = tensors[child].movedim(axis(terms[child], bond), -1).flatten(0, -2)
        largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]
        sign = torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)
        scale = torch.ones_like(sign)
        if gauge == "balanced":
            s = spectrum[bond][0]
            scale = s.clamp_min(float(s.max()) * SMALLEST).sqrt()
        for k, factors in ((child, sign * scale), (parent, sign / scale)):
            tensors[k] = mode_product(tensors[k], axis(terms[k], bond), torch.diag(factors))
    return tensors


def orthogonal(terms: Terms, tensors: Sequence[Tensor], root: int) -> list[Tensor]:
    """The same tensor with every factor but the root orthonormal towards it."""
    tensors = list(tensors)
    for child, bond, parent in leaf_to_root_edges(terms, root):
        rows = tensors[child].movedim(axis(terms[child], bond), -1)
        q, r = torch.linalg.qr(rows.flatten(0, -2))
        tensors[child] = q.unflatten(0, rows.shape[:-1]).movedim(-1, axis(terms[child], bond))
        tensors[parent] = mode_product(tensors[parent], axis(terms[parent], bond), r.mT)
    return tensors


def spectra(terms: Terms, tensors: Sequence[Tensor], root: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Bond -> the singular values of T as the bond cuts it, and their vectors on the bond; of a tree orthogonal to the
    root."""
    centres, found = {root: tensors[root]}, {}
    for child, bond, parent in reversed(leaf_to_root_edges(terms, root)):
        rows = centres[parent].movedim(axis(terms[parent], bond), -1).flatten(0, -2)
        r = torch.linalg.qr(rows, mode="r").R
        _, s, v = torch.linalg.svd(r, full_matrices=False)
        found[bond] = s, v.mT
        centres[child] = mode_product(tensors[child], axis(terms[child], bond), r.mT)
    return found


def _projected(terms: Terms, tensors: Sequence[Tensor], vectors: Mapping[str, Tensor]) -> list[Tensor]:
    """V V' put on every bond."""
    found = []
    for term, tensor in zip(terms, tensors, strict=True):
        for bond in term:
            tensor = mode_product(tensor, axis(term, bond), vectors[bond])
        found.append(tensor)
    return found


def _centre(terms: Terms) -> int:
    """The factor with most bonds."""
    return max(range(len(terms)), key=lambda k: len(terms[k]))
