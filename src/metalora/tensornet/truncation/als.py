"""Truncation of what has no orthogonal form: rings, and factors that all share one bond (CP)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.topology import (
    Terms,
    TruncationTarget,
    axis,
    contract,
    distance,
    edges,
    environment,
    feasible_ranks,
    mode_product,
    norm,
    project_onto,
    tail_norms,
)
from metalora.tensornet.truncation.tree import in_gauge

PASSES = 30  # at most, of the fit after a truncation
GAIN = 1e-3  # a pass that lowers the error by less of it is the last
FLOOR = 1e-7  # of |T|: errors below it are rounding
SHARES = tuple(4.0 * 0.5**k for k in range(14))  # of the tolerance that a ring's bonds discard, until it is kept
SMALLEST = 1e-14  # of the largest eigenvalue: what is divided by at least


def truncate_ring(
    terms: Terms, whole: Sequence[Tensor], goal: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """The truncated factors of a cycle, and the norm that every bond discarded: |T - T'|^2 <= the sum of the squares.

    Bond by bond: the best projection on the bond for an environment that is taken to be a product of its two sides
    (`_projection`), then the fit of all factors to the ring as it was. Guaranteed: no truncation changes nothing, the
    fit never raises the error, a tolerance is kept. Not guaranteed: a distance from the best ring of these ranks, of
    which nothing is known (the set is not even closed); the bound is what was measured, not what was foreseen.
    """
    values = {bond: _projection(terms, whole, bond, 0)[1] for bond in edges(terms)}
    if not goal.cut:
        return _cut_ring(terms, whole, goal.choose(values))
    allowed = goal.cut * len(values) ** 0.5
    for share in SHARES:
        found, discarded = _cut_ring(terms, whole, goal.choose(values, share))
        if distance(terms, whole, found) <= allowed:
            return found, discarded
    return _cut_ring(terms, whole, feasible_ranks(terms, goal.sizes, goal.ranks))


def _cut_ring(terms: Terms, whole: Sequence[Tensor], ranks: dict[str, int]) -> tuple[list[Tensor], dict[str, float]]:
    mine, error, discarded = list(whole), 0.0, dict.fromkeys(ranks, 0.0)
    for bond, (u, v) in edges(terms).items():
        if ranks[bond] == mine[u].shape[axis(terms[u], bond)]:
            continue
        (left, right), _ = _projection(terms, mine, bond, ranks[bond])
        mine[u] = mode_product(mine[u], axis(terms[u], bond), left)
        mine[v] = mode_product(mine[v], axis(terms[v], bond), right)
        now = distance(terms, whole, mine)
        discarded[bond] = max(now**2 - error**2, 0.0) ** 0.5
        error = now
    return fitted(terms, whole, mine), discarded


def _projection(terms: Terms, mine: Sequence[Tensor], bond: str, rank: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What to contract the bond's two ends with, (old, rank) each, and singular values whose squares add up to |T|^2.

    |T - T(P)|^2 of a matrix P on the bond is (I - P)' N (I - P), N the Gram matrix of the ring opened there. With N
    replaced by the product of its two partial traces, K and L: |K^1/2 (I - P) L^1/2|, whose best P of a rank is
    K^-1/2 U U' K^1/2 by the singular vectors U of K^1/2 L^1/2. Exact where nothing flows round the ring (a tree).
    """
    roots = []
    for end in edges(terms)[bond]:
        values, vectors = torch.linalg.eigh(_opened(terms, mine, bond, end))
        roots.append((values.clamp_min(0).sqrt()[:, None] * vectors.mT, values, vectors))
    (one, values, vectors), (other, _, _) = roots
    u, s, _ = torch.linalg.svd(one @ other.mT)
    u = u[:, :rank]
    inverse = torch.where(values > SMALLEST * values.max(), values.clamp_min(1e-300).rsqrt(), 0.0)
    s = s * (norm(terms, mine) / s.square().sum().sqrt().clamp_min(1e-300))
    return (vectors @ (inverse[:, None] * u), one.mT @ u), s


def _opened(terms: Terms, mine: Sequence[Tensor], bond: str, end: int) -> Tensor:
    """The Gram matrix (bond, bond) of one end of a bond, with the network opened there and the other end traced."""
    operands = []
    for k, term in enumerate(terms):
        for side in ("", "'"):
            own = {bond: f"#end{side}" if k == end else "#traced"}
            operands.append((mine[k], [f"#{k}", *(own.get(b, b + side) for b in term)]))
    return contract(operands, ["#end", "#end'"])


def truncate_columns(
    terms: Terms, whole: Sequence[Tensor], goal: TruncationTarget
) -> tuple[list[Tensor], dict[str, float]]:
    """The factors (n, r) with fewer columns, and the norm that this discarded before the fit: at least |T - T'|.

    The columns that explain most of T = sum_r a_r b_r c_r ..., one after another, each with those before it at their
    best weights (orthogonal least squares, on the Gram matrix of the r rank-one tensors); then the weights, then the
    fit of all factors. Kept columns stay in order. Greedy: exact where columns are zero or parallel, else no distance
    from the best is guaranteed (a best one need not exist).
    """
    (bond,) = edges(terms)
    gram = torch.stack([tensor.mT @ tensor for tensor in whole]).prod(0)
    order, gains = _greedy(gram)
    rank = goal.choose({bond: gains})[bond]
    if rank == len(gram):
        return list(whole), {bond: 0.0}
    kept = torch.tensor(sorted(order[:rank]), device=gram.device)
    mine = [tensor[:, kept] for tensor in whole]
    weights = torch.linalg.pinv(gram[kept][:, kept], hermitian=True) @ gram[kept].sum(1)
    mine[-1] = mine[-1] * weights
    discarded = max(distance(terms, whole, mine), float(tail_norms(gains)[rank]))
    return fitted(terms, whole, mine), {bond: discarded}


def _greedy(gram: Tensor) -> tuple[list[int], Tensor]:
    """Columns in the order in which they explain most of their sum, and the norm that each explains."""
    left, along, order, gains = gram.clone(), gram.sum(1), [], []
    smallest = gram.diagonal() * SMALLEST
    for _ in range(len(gram)):
        rest = left.diagonal()
        gain = torch.where(rest > smallest, along.square() / rest.clamp_min(1e-300), 0.0)
        gain[order] = -1.0
        best = int(gain.argmax())
        order.append(best)
        gains.append(float(gain[best]) ** 0.5)
        if gains[-1] > 0:
            column = left[:, best] / rest[best].sqrt()
            along = along - column * (along[best] / rest[best].sqrt())
            left = left - torch.outer(column, column)
    return order, gram.new_tensor(gains)


def fitted(terms: Terms, whole: Sequence[Tensor], mine: Sequence[Tensor], passes: int = PASSES) -> list[Tensor]:
    """Every factor in turn the best for the others (alternating least squares): |T - T'| never rises.

    X = <T, rest> <rest, rest>^-1, with the rest of T' at the factor's bonds.
    """
    best, error, floor = list(mine), distance(terms, whole, mine), FLOOR * norm(terms, whole)
    for _ in range(passes):
        if error <= floor:
            break
        trial = list(best)
        for k, tensor in enumerate(trial):
            rest = environment(terms, trial, trial, [k]).reshape(tensor[0].numel(), -1)
            inverse = torch.linalg.pinv(rest, hermitian=True, rtol=SMALLEST)
            trial[k] = (project_onto(terms, whole, trial, k).flatten(1) @ inverse).reshape(tensor.shape)
        before, now = error, distance(terms, whole, trial)
        if now >= before:
            break
        best, error = trial, now
        if before - now < GAIN * before:
            break
    return best


# ---- where the norm is ----------------------------------------------------------------------------------------------
def ring_in_gauge(terms: Terms, tensors: Sequence[Tensor], gauge: str) -> list[Tensor]:
    """The same tensor in the gauge of a chain (`tree.in_gauge`): that of the ring, opened at its first bond."""
    opened, chain, first = list(tensors), [list(term) for term in terms], terms[0][0]
    ends = edges(terms)[first]
    for k in ends:
        opened[k] = opened[k].movedim(axis(terms[k], first), 1).flatten(0, 1)
        chain[k].remove(first)
    found = in_gauge(chain, opened, gauge)
    for k in ends:
        found[k] = found[k].unflatten(0, (len(tensors[k]), -1)).movedim(1, axis(terms[k], first))
    return found


def columns_in_gauge(terms: Terms, tensors: Sequence[Tensor], gauge: str) -> list[Tensor]:
    """The same for every column, the largest entry positive in all factors but the last (the first: right).

    A column of zeros stays one, and costs the others nothing, so that a gradient can still reach it.
    """
    holder = 0 if gauge == "right" else len(tensors) - 1
    norms = torch.stack([tensor.norm(dim=0) for tensor in tensors])
    norms = torch.where(norms > 0, norms, 1.0)
    signs = torch.stack([t.gather(0, t.abs().argmax(0, keepdim=True))[0] < 0 for t in tensors])
    signs = torch.where(signs, -1.0, 1.0).to(norms.dtype)
    signs[holder] = 1.0
    signs[holder] = signs.prod(0)
    share = norms.log().mean(0).exp().expand_as(norms) if gauge == "balanced" else torch.ones_like(norms)
    if gauge != "balanced":
        share = share.clone()
        share[holder] = norms.log().sum(0).exp()
    return [tensor * (signs[k] * share[k] / norms[k]) for k, tensor in enumerate(tensors)]
