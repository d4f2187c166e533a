"""Rank-adaptive sweeps of an attached adapter: its factors are truncated, its optimiser told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.adapters.layout import build_layout
from metalora.adapters.resize import resize
from metalora.config import AdapterConfig
from metalora.methods.resolve import resolve
from metalora.ranks.groups import FactorGroup, factor_groups
from metalora.tensornet.topology import bond_sizes
from metalora.tensornet.truncation.gauge import Gauge
from metalora.tensornet.truncation.moments import transport_moments
from metalora.tensornet.truncation.truncate import Mode, TruncatedNetwork, truncate

State = Literal["reset", "carry"]


@dataclass(frozen=True)
class SweepReport:
    """The size of every bond before and after, the numbers before and after, and the relative error made."""

    before: dict[str, int]
    after: dict[str, int]
    params_before: int
    params_after: int
    error: float
    """|T - T'|_F / |T|_F of what is truncated together, the largest over targets"""


@torch.no_grad()
def sweep(
    model: nn.Module,
    *,
    rank: int | Mapping[str, int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
    optimizer: torch.optim.Optimizer | None = None,
    state: State = "reset",
) -> SweepReport:
    """Truncate the adapter's factors to ranks, to a relative error, or to a number of parameters.

    How is told by their wiring: chains by rounding (MetaTT, Algorithm 1), trees such as Tucker by HOSVD and HOOI, rings
    bond by bond with a fit, factors that share one bond (CP) by the columns that matter; see `network.truncation`.

    rank       of every bond (never above what it is), or one per bond; without a target nothing is truncated
    mode       "paper": Algorithm 1 as printed, for chains only
    gauge      where the norm ends: in the last factor (left), in the first (right), shared alike (balanced)
    optimizer  whose moments of the changed factors are dropped (state="reset", the paper's way) or carried over by
               the change of basis (state="carry": exact for the mean without truncation, diagonal for the square)
    Parameters stay the same objects, so let go of an earlier loss first (`del loss`): its graph has the old shapes.
    Bonds of a generated factor stay as they are. Under torch.distributed, process 0 decides.
    ValueError: factors of another wiring, state="carry" for a ring, a merged or untrained adapter, ranks that grow;
    nothing is changed.
    """
    adapter, pieces = _ready(model, state)
    if len(pieces) > 1 and (tolerance or budget is not None):
        what = f"{len(pieces)} {pieces[0].kind}s of factors"
        raise ValueError(f"sweep: the adapter has {what}; give them a rank=... instead")
    before, params, scale, factors = _bond_sizes(adapter), adapter.num_params(), adapter.scale, adapter.factors
    wanted = _wanted(rank, before, free={bond for piece in pieces for term in piece.terms for bond in term})
    if budget is not None:
        budget -= params - sum(factors[key].numel() for keys in pieces[0].keys for key in keys)
    moments = _moments(optimizer, adapter.learned) if state == "carry" else {}
    new, new_moments, error = {}, {name: {} for name in moments}, 0.0
    sizes: dict[str, int] = {}
    for piece in pieces:
        tensors = piece.gather(factors)
        ranks = None if rank is None else {b: min(wanted[b], n) for b, n in bond_sizes(piece.terms, tensors).items()}
        target = dict(ranks=ranks, tolerance=tolerance, budget=budget)
        found = _truncated(piece, tensors, mode=mode, gauge=gauge, **target)
        error = max(error, found.error)
        new |= piece.scatter(found.tensors, factors)
        for name, every in moments.items():
            moved = transport_moments(
                piece.terms, tensors, found.tensors, piece.gather(every), squared=name == "exp_avg_sq"
            )
            new_moments[name] |= piece.scatter(moved, factors)
        sizes |= {b: max(n, sizes.get(b, 0)) for b, n in found.ranks.items()}
    absent = {bond: 1 for bond in adapter.method.rank_bonds if bond not in before}  # of a part that no target takes
    config = replace(adapter.config, rank={**absent, **before, **sizes})
    new, *padded = _padded(adapter, config, [new, *new_moments.values()])
    new_moments = dict(zip(new_moments, padded, strict=True))
    resize(adapter, config, new)
    _keep_delta(adapter, pieces[0].factors[-1], scale / adapter.scale, new, new_moments)
    if optimizer is not None:
        _tell(optimizer, {key: factors[key] for key in new}, new_moments)
    return SweepReport(before, config.rank, params, adapter.num_params(), error)


def _ready(model: nn.Module, state: State) -> tuple[Adapter, list[FactorGroup]]:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"sweep: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError("sweep: the adapter is merged; unmerge it first")
    if adapter.config.rank_pattern:
        raise ValueError("sweep: the adapter has a rank_pattern, and a sweep knows one rank a bond")
    pieces = factor_groups(adapter)
    for piece in pieces:
        if state == "carry" and piece.kind == "ring":
            raise ValueError(
                f"sweep of {piece}: a ring is truncated by a fit, which is no change of basis that moments could be "
                "carried over by; use state='reset'"
            )
    return adapter, pieces


def _truncated(piece: FactorGroup, tensors: Sequence[Tensor], **target: Any) -> TruncatedNetwork:
    """`truncate`, its errors with the name of the piece; under torch.distributed, what process 0 found."""
    try:
        found = [truncate(piece.terms, tensors, **target)]
    except ValueError as problem:
        raise ValueError(f"sweep of {piece}: {problem}") from None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _padded(adapter: Adapter, config: AdapterConfig, many: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Tensors with zeros up to the shape of their factor: a rank that is too large at one target is not at another."""
    stored = build_layout(list(adapter.targets.values()), resolve(config)).params
    found = []
    for tensors in many:
        missing = {
            key: [max(n - m, 0) for n, m in zip(stored[key].shape, t.shape, strict=True)] for key, t in tensors.items()
        }
        pads = {key: [side for n in reversed(short) for side in (0, n)] for key, short in missing.items()}
        found.append({key: torch.nn.functional.pad(t, pads[key]) for key, t in tensors.items()})
    return found


def _keep_delta(
    adapter: Adapter, factor: str, ratio: float, new: Mapping[str, Tensor], moments: Mapping[str, dict[str, Tensor]]
) -> None:
    """alpha / r rises as r falls: one factor falls with it, and its gradient rises."""
    for key in new:
        if adapter.layout.params[key].factor == factor:
            adapter.factors[key].mul_(ratio)
            for name, tensors in moments.items():
                tensors[key] = tensors[key] / ratio ** (2 if name == "exp_avg_sq" else 1)


def _bond_sizes(adapter: Adapter) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in adapter.layout.params.values():
        for mode, size in zip(one.modes, one.shape, strict=True):
            if mode in adapter.method.rank_bonds:
                found[mode] = max(found.get(mode, 0), size)
    return found


def _wanted(rank: int | Mapping[str, int] | None, now: dict[str, int], free: Collection[str]) -> dict[str, int]:
    if rank is None:
        return now
    if isinstance(rank, Mapping):
        for bond, size in rank.items():
            if bond not in now:
                raise ValueError(f"sweep: rank names bond {bond!r}{nearest(bond, now)}")
            if bond not in free and size != now[bond]:
                raise ValueError(f"sweep: bond {bond!r} is that of a generated factor and stays at {now[bond]}")
        wanted = {**now, **rank}
    else:
        if rank > max(now.values()):
            raise ValueError(f"sweep: rank {rank} grows above {max(now.values())}: a sweep can only lower ranks")
        wanted = {bond: min(rank, size) for bond, size in now.items()}
    for bond, size in wanted.items():
        if not 1 <= size <= now[bond]:
            raise ValueError(f"sweep: rank {size} of bond {bond!r} is not between 1 and {now[bond]}, what it is now")
    return wanted


# ---- the optimiser --------------------------------------------------------------------------------------------------
def _moments(optimizer: Any, factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """exp_avg and exp_avg_sq of the factors, where the optimiser has them for all."""
    states = {key: optimizer.state.get(parameter, {}) for key, parameter in factors.items()} if optimizer else {}
    names = [name for name in ("exp_avg", "exp_avg_sq") if states and all(name in one for one in states.values())]
    return {name: {key: one[name] for key, one in states.items()} for name in names}


def _tell(optimizer: Any, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, Mapping[str, Tensor]]) -> None:
    for key, parameter in parameters.items():
        if not moments:
            optimizer.state.pop(parameter, None)
        for name, tensors in moments.items():
            optimizer.state[parameter][name] = tensors[key].to(parameter).contiguous()
