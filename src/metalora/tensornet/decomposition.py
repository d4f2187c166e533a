"""A small dense tensor as factors: exactly for chains and trees, by alternating least squares for one shared bond (CP).

The tensor has an axis for every factor, of size one where a factor has bonds alone.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.topology import Terms, bond_sizes, classify_topology, contract, leaf_to_root_edges
from metalora.tensornet.truncation.tree import hooi, in_gauge
from metalora.tensornet.truncation.truncate import truncate

Columns = Literal["joint", "deflated"]
SMALLEST = 1e-13  # of the largest singular value: below it a direction is rounding
REFINEMENTS = 8  # of HOOI, beyond those of a truncation
PASSES = 200  # at most, of alternating least squares
GAIN = 1e-5  # a pass that lowers the error by less of it is the last
FLOOR = 1e-9  # of |T|: errors below it are rounding


def factorise(terms: Terms, tensor: Tensor, ranks: dict[str, int], columns: Columns = "joint") -> list[Tensor]:
    """Factors (n, *bonds) of at most these ranks whose contraction is near the tensor, norms balanced.

    chain: TT-SVD, `round_train`, then pairs of neighbours as in HOOI · tree: HOSVD, then HOOI · shared bond: ALS from
    two starts, of all columns together or (deflated) of one after another. Float64.
    ValueError: rings and other wirings, a zero tensor.
    """
    kind = classify_topology(terms)
    if kind == "shared bond":
        return (fit_columns if columns == "joint" else deflated)(tensor, next(iter(ranks.values())))
    if kind not in ("chain", "tree"):
        raise ValueError(f"bonds {list(map(list, terms))} are no chain, tree or one bond shared by all")
    whole = decompose(terms, tensor)
    now = bond_sizes(terms, whole)
    wanted = {bond: min(rank, now[bond]) for bond, rank in ranks.items()}
    found = truncate(terms, whole, ranks=wanted, gauge="balanced").tensors
    return found if wanted == now else in_gauge(terms, hooi(terms, whole, found, REFINEMENTS), "balanced")


def decompose(terms: Terms, tensor: Tensor) -> list[Tensor]:
    """The tensor as a chain or tree, exactly: leaves first, T = U (S V') as the bond to the root cuts what is left.

    Of a chain TT-SVD (Oseledets 2011, Algorithm 1), of a star HOSVD (De Lathauwer et al. 2000a), without truncation.
    """
    root = max(range(len(terms)), key=lambda k: len(terms[k]))
    found, rest, labels = [tensor] * len(terms), tensor, [f"#{k}" for k in range(len(terms))]
    for child, bond, _ in leaf_to_root_edges(terms, root):
        own = [f"#{child}", *(b for b in terms[child] if b != bond)]
        others = [label for label in labels if label not in own]
        rest = rest.permute([labels.index(label) for label in [*own, *others]])
        sizes = rest.shape
        u, s, v = torch.linalg.svd(rest.reshape(sizes[: len(own)].numel(), -1), full_matrices=False)
        rank = max(1, int((s > SMALLEST * s[0]).sum()))
        factor = u[:, :rank].reshape(*sizes[: len(own)], rank)
        found[child] = factor.permute([[*own, bond].index(b) for b in (own[0], *terms[child])])
        rest, labels = (s[:rank, None] * v[:rank]).reshape(rank, *sizes[len(own) :]), [bond, *others]
    found[root] = rest.permute([labels.index(label) for label in (f"#{root}", *terms[root])])
    return found


# ---- one bond shared by all -----------------------------------------------------------------------------------------
def fit_columns(tensor: Tensor, rank: int) -> list[Tensor]:
    """CP factors (n, rank) by alternating least squares, from eigenvectors and from singular vectors: the better.

    No best one need exist, and none is promised; an exact one is found where its columns on the two longest axes are
    linearly independent (Jennrich's algorithm is then exact).
    """
    drawn = torch.Generator().manual_seed(0)
    starts = [_singular_start(tensor, rank, drawn)]
    if tensor.ndim > 2 and sorted(tensor.shape)[-2] >= rank:
        starts.append(_eigen_start(tensor, rank, drawn))
    found = [_alternated(tensor, start) for start in starts]
    return _balanced(min(found, key=lambda one: one[1])[0])


def deflated(tensor: Tensor, rank: int) -> list[Tensor]:
    """CP factors (n, rank) greedily: the best rank-one tensor by the higher-order power method, taken away, and again.

    Each column is as near to what is left as the method gets; all together are no better than `fit_columns`.
    """
    rest, found = tensor, []
    for _ in range(rank):
        found.append(fit_columns(rest, 1))  # with one column, alternating least squares is the power method
        rest = rest - contract([(column, [f"#{k}", "r"]) for k, column in enumerate(found[-1])], _axes(tensor))
    return [torch.cat(columns, 1) for columns in zip(*found, strict=True)]


def _axes(tensor: Tensor) -> list[str]:
    return [f"#{k}" for k in range(tensor.ndim)]


def _alternated(tensor: Tensor, factors: list[Tensor]) -> tuple[list[Tensor], float]:
    """X_k = T_(k) (rest) ((rest)' rest)^-1 for every axis in turn, longest first, and |T - T'| in the end."""
    square, error = float(tensor.square().sum()), float("inf")
    order = sorted(range(tensor.ndim), key=lambda k: -tensor.shape[k])
    for _ in range(PASSES):
        for k in order:
            rest = torch.stack([f.mT @ f for j, f in enumerate(factors) if j != k]).prod(0)
            seen = _seen(tensor, factors, k)
            factors[k] = seen @ torch.linalg.pinv(rest, hermitian=True, rtol=1e-14)
        fit = (rest * (factors[k].mT @ factors[k])).sum() - 2 * (seen * factors[k]).sum()
        before, error = error, max(square + float(fit), 0.0) ** 0.5
        if error <= FLOOR * square**0.5 or before - error < GAIN * error:
            break
        factors = _balanced(factors)
    return factors, error


def _seen(tensor: Tensor, factors: Sequence[Tensor], k: int) -> Tensor:
    """The tensor contracted with the columns of all factors but one: (n_k, rank)."""
    labels = _axes(tensor)
    others = [(factor, [labels[j], "r"]) for j, factor in enumerate(factors) if j != k]
    return contract([(tensor, labels), *others], [labels[k], "r"])


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same columns, of the same norm in every factor."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(1e-150)
    share = norms.log().mean(0).exp()
    return [factor * (share / norm) for factor, norm in zip(factors, norms, strict=True)]


def _singular_start(tensor: Tensor, rank: int, drawn: torch.Generator) -> list[Tensor]:
    """The leading singular vectors of every unfolding, and random columns where there are too few."""
    found = []
    for k, n in enumerate(tensor.shape):
        vectors = torch.linalg.svd(tensor.movedim(k, 0).reshape(n, -1), full_matrices=False).U[:, :rank]
        missing = torch.randn(n, rank - vectors.shape[1], generator=drawn, dtype=tensor.dtype)
        found.append(torch.cat([vectors, missing], 1))
    return found


def _eigen_start(tensor: Tensor, rank: int, drawn: torch.Generator) -> list[Tensor]:
    """Jennrich: M1 M2^+ of two random mixtures of slices has the columns of the longest axis as eigenvectors."""
    i, j = sorted(range(tensor.ndim), key=lambda k: -tensor.shape[k])[:2]
    slices = tensor.movedim((i, j), (0, 1)).flatten(2)
    u, v = (torch.linalg.svd(slices.movedim(k, 0).flatten(1), full_matrices=False).U[:, :rank] for k in (0, 1))
    mixed = slices @ torch.randn(slices.shape[2], 2, generator=drawn, dtype=tensor.dtype)
    one, other = (u.mT @ mixed[..., k] @ v for k in (0, 1))
    columns = u @ torch.linalg.eig(one @ torch.linalg.pinv(other)).eigenvectors.real
    rows = torch.tensordot(torch.linalg.pinv(columns), tensor.movedim(i, 0), 1)  # (rank, the other axes)
    found = [
        torch.linalg.svd(rows.movedim(k, 1).flatten(2), full_matrices=False).U[:, :, 0].mT
        for k in range(1, tensor.ndim)
    ]
    return [*found[:i], columns, *found[i:]]
