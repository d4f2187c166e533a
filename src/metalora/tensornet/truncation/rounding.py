"""Rank truncation of tensor trains: DMRG-style sweeps of singular value decompositions.

A train is a list of cores (r_{k-1}, n_k, r_k) with r_0 = r_d = 1; bond k lies between core k and core k + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.topology import tail_norms

Mode = Literal["round", "paper"]
Gauge = Literal["left", "right", "balanced"]
REFINEMENTS = 2  # passes from the left and back after a truncation
SMALLEST = 1e-12  # of the largest singular value: what a balanced gauge divides by at least


@dataclass(frozen=True)
class Rounded:
    """A train after a sweep: cores, ranks, and the norm that each bond discarded.

    Of mode "round", |T - T'|_F <= `bound`, the root of the sum of the squares; mode "paper" has no such bound.
    """

    cores: list[Tensor]
    ranks: tuple[int, ...]
    discarded: tuple[float, ...]

    @property
    def bound(self) -> float:
        """The root of the discarded squares."""
        return sqrt(sum(value**2 for value in self.discarded))


def round_train(
    cores: Sequence[Tensor],
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
) -> Rounded:
    """Truncate a train to target ranks, to a relative error or to a number of parameters; computed in float64.

    ranks      of the bonds, lowered to what is feasible; None keeps them
    tolerance  |T - T'|_F <= tolerance |T|_F (mode round): each bond discards at most tolerance |T| / sqrt(d - 1)
    budget     the relatively largest singular values of all bonds that the cores have room for
    mode       round: orthogonalise from the right by QR, truncate from the left (Oseledets 2011, Algorithm 2), then fit
               core by core to the train as it was
               paper: truncate from the left, then from the right, as printed (MetaTT, Algorithm 1)
    gauge      where the norm ends: in the last core (left), in the first (right), shared alike (balanced)

    The largest entry of every singular vector is positive. ValueError: a zero or not finite train, ranks that grow, a
    budget below that of rank one, more than one target.
    """
    if (ranks is not None) + (tolerance > 0) + (budget is not None) > 1:
        raise ValueError("a train is rounded to ranks, to a tolerance or to a budget: give one of them")
    train = [core.detach().to(torch.float64) for core in cores]
    _check(train, ranks)
    if budget is not None:
        ranks = ranks_for_budget(train, budget)
    kept = tuple(core.shape[2] for core in train[:-1]) if ranks is None else tuple(ranks)
    wanted = feasible_ranks([core.shape[1] for core in train], kept)
    cut = tolerance * norm(train) / sqrt(max(len(wanted), 1))
    if mode == "paper":
        train, first, _ = _sweep(train, wanted, cut)
        train, second, values = _sweep(_mirrored(train), wanted[::-1], cut)
        train, values = _mirrored(train), values[::-1]
        discarded = tuple(map(max, first, second[::-1]))
    else:
        whole = train
        train, discarded, values = _sweep(_orthogonal_from_right(whole), wanted, cut)
        if any(discarded):
            train, _, values = _sweep(_refined(train, whole), [len(s) for s in values], 0.0)
    train = _in_gauge(train, values, gauge, ends_right=mode == "paper")
    return Rounded(
        [core.to(like.dtype) for core, like in zip(train, cores, strict=True)],
        tuple(core.shape[2] for core in train[:-1]),
        discarded,
    )


def norm(train: Sequence[Tensor]) -> float:
    """|T|_F, from the Gram matrices of the cores."""
    gram = torch.ones(1, 1, dtype=train[0].dtype, device=train[0].device)
    for core in train:
        gram = torch.einsum("ab,anc,bnd->cd", gram, core, core)
    return sqrt(max(float(gram), 0.0))


def singular_values(train: Sequence[Tensor]) -> list[Tensor]:
    """Those of every bond, the train cut into two there; largest first."""
    ranks = [core.shape[2] for core in train[:-1]]
    return _sweep(_orthogonal_from_right([core.detach().to(torch.float64) for core in train]), ranks, 0.0)[2]


def feasible_ranks(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks, lowered to r_k <= min(n_1 ... n_k, n_{k+1} ... n_d) and to r_k <= r_{k-1} n_k, r_{k+1} n_{k+1}."""
    found = [min(rank, prod(sizes[: k + 1]), prod(sizes[k + 1 :])) for k, rank in enumerate(ranks)]
    for k in range(1, len(found)):
        found[k] = min(found[k], found[k - 1] * sizes[k])
    for k in range(len(found) - 2, -1, -1):
        found[k] = min(found[k], found[k + 1] * sizes[k + 1])
    return tuple(found)


def ranks_for_budget(train: Sequence[Tensor], budget: int) -> tuple[int, ...]:
    """Ranks whose cores have at most `budget` numbers: from rank one, the relatively largest next value first."""
    values = singular_values(train)
    sizes = [core.shape[1] for core in train]
    ranks = [1] * len(values)
    if _numbers(sizes, ranks) > budget:
        raise ValueError(f"a budget of {budget} numbers is below {_numbers(sizes, ranks)}, that of rank one")
    steps = sorted(
        ((float(v / bond[0].clamp_min(1e-300)), k) for k, bond in enumerate(values) for v in bond[1:]), reverse=True
    )
    for value, k in steps:
        ranks[k] += 1
        if value == 0 or _numbers(sizes, ranks) > budget:
            ranks[k] -= 1
    return feasible_ranks(sizes, ranks)


def _numbers(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    ends = [1, *ranks, 1]
    return sum(ends[k] * n * ends[k + 1] for k, n in enumerate(sizes))


def _check(train: Sequence[Tensor], ranks: Sequence[int] | None) -> None:
    if any(not torch.isfinite(core).all() for core in train):
        raise ValueError("the train is not finite")
    if norm(train) == 0:
        raise ValueError("the train is zero: its singular vectors mean nothing, and a sweep would cripple it")
    now = [core.shape[2] for core in train[:-1]]
    if ranks is None:
        return
    if len(ranks) != len(now) or min(ranks, default=1) < 1:
        raise ValueError(f"ranks are {list(ranks)}, expected {len(now)} numbers of at least 1")
    if any(new > old for new, old in zip(ranks, now, strict=True)):
        raise ValueError(f"ranks {list(ranks)} grow above {now}: a sweep can only lower them")


# ---- sweeps ---------------------------------------------------------------------------------------------------------
def _sweep(
    train: Sequence[Tensor], ranks: Sequence[int], cut: float
) -> tuple[list[Tensor], tuple[float, ...], list[Tensor]]:
    """From the left, bond by bond: M = merge(G_k, G_{k+1}) = U S V'; G_k = U, G_{k+1} = S V', truncated.

    M itself is never formed: with QR of both sides, the decomposition is that of an r x r matrix. The largest entry of
    every column of U is made positive, so that equal input gives equal output.
    """
    train, discarded, kept = list(train), [], []
    for k, rank in enumerate(ranks):
        left, right = train[k], train[k + 1]
        q1, r1 = torch.linalg.qr(left.flatten(0, 1))
        q2, r2 = torch.linalg.qr(right.flatten(1).mT)
        u, s, v = torch.linalg.svd(r1 @ r2.mT, full_matrices=False)
        rank = min(rank, len(s))
        rest = tail_norms(s)
        if cut > 0:
            rank = min(rank, max(1, int((rest > cut).sum())))
        discarded.append(float(rest[rank]) if rank < len(s) else 0.0)
        kept.append(s[:rank])
        columns = q1 @ u[:, :rank]
        sign = torch.where(columns.gather(0, columns.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(s.dtype)
        train[k] = (columns * sign).unflatten(0, left.shape[:2])
        train[k + 1] = (sign.mT * s[:rank, None] * (v[:rank] @ q2.mT)).unflatten(1, right.shape[1:])
    return train, tuple(discarded), kept


def _mirrored(train: Sequence[Tensor]) -> list[Tensor]:
    return [core.permute(2, 1, 0) for core in reversed(train)]


def _orthogonal_from_right(train: Sequence[Tensor]) -> list[Tensor]:
    """The same tensor with every core but the first orthogonal in its rows."""
    train = list(train)
    for k in range(len(train) - 1, 0, -1):
        q, r = torch.linalg.qr(train[k].flatten(1).mT)
        train[k] = q.mT.unflatten(1, train[k].shape[1:])
        train[k - 1] = train[k - 1] @ r.mT
    return train


def _refined(train: list[Tensor], whole: Sequence[Tensor], times: int = REFINEMENTS) -> list[Tensor]:
    """The best core for the others, one after another, from the left and back: |T - T'| never rises.

    With orthogonal neighbours the best core is the whole train seen through them. Ends orthogonal from the right.
    """
    for _ in range(2 * times):
        train = _mirrored(_fitted_from_left(_orthogonal_from_right(train), whole))
        whole = _mirrored(whole)
    return _orthogonal_from_right(train)


def _fitted_from_left(train: list[Tensor], whole: Sequence[Tensor]) -> list[Tensor]:
    """One pass over a train whose cores but the first are orthogonal in their rows."""
    train = list(train)
    one = torch.ones(1, 1, dtype=train[0].dtype, device=train[0].device)
    rights = [one]  # what the cores on the right see of the whole: (whole's bond, train's bond)
    for mine, core in zip(reversed(train[1:]), reversed(whole[1:]), strict=True):
        rights.append(torch.einsum("anb,bd,cnd->ac", core, rights[-1], mine))
    left = one
    for k, core in enumerate(whole):
        train[k] = torch.einsum("ca,anb,bd->cnd", left, core, rights[-1 - k])
        if k < len(whole) - 1:
            train[k] = torch.linalg.qr(train[k].flatten(0, 1))[0].unflatten(0, train[k].shape[:2])
            left = torch.einsum("ca,anb,cnd->db", left, core, train[k])
    return train


def _in_gauge(train: list[Tensor], values: list[Tensor], gauge: Gauge, ends_right: bool) -> list[Tensor]:
    """Move the norm of a train that a sweep has left in its last core (first, if `ends_right`)."""
    if gauge == ("right" if ends_right else "left"):
        return train
    if gauge == "left":
        return _mirrored(_orthogonal_from_right(_mirrored(train)))
    if gauge == "right":
        return _orthogonal_from_right(train)
    roots = [s.clamp_min(float(s.max()) * SMALLEST).sqrt() for s in values]
    if ends_right:
        return _mirrored(_balanced(_mirrored(train), roots[::-1]))
    return _balanced(train, roots)


def _balanced(train: list[Tensor], roots: list[Tensor]) -> list[Tensor]:
    """G_k -> D_{k-1}^-1 G_k D_k with D the roots of the singular values."""
    one = torch.ones(1, dtype=train[0].dtype, device=train[0].device)
    ends = [one, *roots, one]
    return [core / ends[k][:, None, None] * ends[k + 1] for k, core in enumerate(train)]
