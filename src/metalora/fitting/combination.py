"""Low-rank updates of one weight combined into one: a weighted sum, TIES (arXiv:2306.01708) or DARE (arXiv:2311.03099).

The rules of TIES and DARE see single numbers of Delta W, so one dense Delta W per update is formed, target by target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.fitting.updates import LowRankUpdate
from metalora.tensornet.truncation.truncated_svd import TruncatedProduct, truncated_svd

How = Literal["sum", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
Sign = Literal["total", "frequency"]
HOWS: tuple[str, ...] = get_args(How)
ELECTING = ("ties", "dare_ties")  # these elect a sign for every number, and average what agrees with it
DROPPING = ("dare_linear", "dare_ties")  # these drop numbers at random


@dataclass(frozen=True)
class CombinationRule:
    """How updates become one.

    Attributes:
        how: "sum": the weighted sum. "magnitude_prune": only the largest numbers of each update, summed.
            "dare_linear": a random part of the numbers, divided by the density, summed. "ties" and "dare_ties": the
            same two prunings, then for every number the mean over the updates that have the elected sign.
        density: The part of the numbers of each update that is kept, above 0 and at most 1; None for "sum".
        sign: How a sign is elected: by the sum of the numbers ("total"), or by the count of the signs ("frequency").
        seed: Of the numbers that are dropped at random.

    Raises:
        ValueError: An unknown rule or sign, or a density that is missing, out of range or without a meaning.

    Example:
        >>> CombinationRule("ties", density=0.5).elects
        True
    """

    how: How = "sum"
    density: float | None = None
    sign: Sign = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise ValueError(f"combine: how={self.how!r}{nearest(self.how, HOWS)}")
        if self.sign not in get_args(Sign):
            raise ValueError(f"combine: sign={self.sign!r}{nearest(self.sign, get_args(Sign))}")
        if self.how == "sum" and self.density is not None:
            raise ValueError("combine: density is what pruning keeps, and how='sum' prunes nothing; leave it out")
        if self.how != "sum" and (self.density is None or not 0 < self.density <= 1):
            raise ValueError(f"combine: density={self.density} for how={self.how!r}, expected above 0 and at most 1")
        if self.sign != "total" and not self.elects:
            raise ValueError(f"combine: how={self.how!r} elects no sign, so sign={self.sign!r} means nothing")

    @property
    def elects(self) -> bool:
        """Whether a sign is elected for every number."""
        return self.how in ELECTING


def combine_updates(
    updates: Sequence[Mapping[str, LowRankUpdate]],
    weights: Sequence[float],
    rule: CombinationRule,
    rank: int | None = None,
) -> dict[str, TruncatedProduct]:
    """Combine the updates of several adapters, target by target, in float64.

    Args:
        updates: Of every adapter, target -> update. The targets of the result are those of all; where an adapter has
            no update, its update is zero.
        weights: One number for every adapter. Negative ones subtract it, which an elected sign does not allow.
        rule: How updates become one.
        rank: The largest rank of the result. None: of a sum the sum of the ranks, so that nothing is lost; of the
            other rules the largest rank of the updates at the target.

    Returns:
        Target -> the combined update as Left^T Right, with the norm of what its rank lost.

    Raises:
        ValueError: No adapter, another number of weights, a weight that is not finite or not allowed, a rank below 1,
            or updates of unequal shapes.

    Example:
        >>> first = LowRankUpdate(down=torch.ones(1, 3), up=torch.ones(2, 1))
        >>> second = LowRankUpdate(down=torch.eye(3)[:1], up=torch.ones(2, 1))
        >>> combined = combine_updates([{"fc": first}, {"fc": second}], [0.5, 2.0], CombinationRule())
        >>> combined["fc"].left.mT @ combined["fc"].right
        tensor([[2.5000, 2.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    check_arguments(len(updates), weights, rule, rank)
    generator = torch.Generator().manual_seed(rule.seed)
    combined = {}
    for path in dict.fromkeys(path for by_path in updates for path in by_path):  # of all adapters, each path once
        parts = [(by_path[path], weight) for by_path, weight in zip(updates, weights, strict=True) if path in by_path]
        shapes = {(len(update.up), *update.down.shape[1:]) for update, _ in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"combine: target {path!r} has updates for weights of {sorted(shapes)}, expected one shape"
            )
        combined[path] = _combine_target(parts, rule, rank, generator)
    return combined


def check_arguments(count: int, weights: Sequence[float], rule: CombinationRule, rank: int | None) -> None:
    """Raise a ValueError unless weights and a rank fit the number of adapters and the rule; see `combine_updates`."""
    if not count:
        raise ValueError("combine: no adapter is given")
    if len(weights) != count:
        raise ValueError(f"combine: {len(weights)} weights for {count} adapters, expected one for each")
    if not torch.isfinite(torch.tensor(weights)).all():
        raise ValueError(f"combine: weights {list(weights)}, expected finite numbers")
    if rule.elects and min(weights) <= 0:
        raise ValueError(f"combine: how={rule.how!r} elects signs, so weights are above 0; subtract with how='sum'")
    if rank is not None and rank < 1:
        raise ValueError(f"combine: rank is {rank}, expected at least 1")


def _combine_target(
    parts: Sequence[tuple[LowRankUpdate, float]], rule: CombinationRule, rank: int | None, generator: torch.Generator
) -> TruncatedProduct:
    """Combine the updates of one target, each with its weight."""
    first = parts[0][0]
    full_rank = min(len(first.up), first.down[0].numel())
    if rule.how == "sum":
        left = torch.cat([update.down.double() for update, _ in parts])  # (sum of the ranks, in, *kernel)
        right = torch.cat([weight * update.up.double().mT for update, weight in parts])  # (sum of the ranks, out)
        return truncated_svd(left, right, full_rank if rank is None else min(rank, full_rank))
    deltas = torch.stack([update.up.double() @ update.down.double().flatten(1) for update, _ in parts])
    weights = deltas.new_tensor([weight for _, weight in parts])
    delta = _combine_numbers(deltas, weights, rule, generator)  # (out, in)
    largest_rank = max(len(update.down) for update, _ in parts)
    left = delta.reshape(-1, *first.down.shape[1:])
    identity = torch.eye(len(delta), dtype=delta.dtype, device=delta.device)
    return truncated_svd(left, identity, min(largest_rank if rank is None else rank, full_rank))


def _combine_numbers(deltas: Tensor, weights: Tensor, rule: CombinationRule, generator: torch.Generator) -> Tensor:
    """Combine dense updates (n, out, in) with weights (n,) to (out, in)."""
    assert rule.density is not None
    if rule.how in DROPPING:
        kept = torch.stack([_drop_at_random(delta, rule.density, generator) for delta in deltas])
    else:
        kept = torch.stack([_keep_largest(delta, rule.density) for delta in deltas])
    weighted = kept * weights[:, None, None]
    if not rule.elects:
        return weighted.sum(0)
    signs = kept.sign()  # 0 for what was pruned, which agrees with no elected sign
    votes = kept if rule.sign == "total" else signs
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agrees = signs == elected
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _keep_largest(delta: Tensor, density: float) -> Tensor:
    """Set all but the numbers of the largest magnitude to zero; one is kept at least."""
    count = max(1, int(density * delta.numel()))
    kept = torch.zeros_like(delta).flatten()
    indices = delta.abs().flatten().topk(count).indices
    kept[indices] = delta.flatten()[indices]
    return kept.reshape(delta.shape)


def _drop_at_random(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Set numbers to zero with probability 1 - density, and divide the others by the density (DARE)."""
    # drawn on the CPU, so that a seed means the same on every device
    mask = torch.bernoulli(torch.full(delta.shape, density, dtype=delta.dtype), generator=generator)
    return delta * mask.to(delta.device) / density
