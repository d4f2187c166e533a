"""Rank-adaptive sweeps of an attached adapter: its chain of factors is rounded, its optimiser told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, plan
from metalora.adapters.placement import Stored, place
from metalora.config import AdapterConfig, nearest
from metalora.network.rounding import Gauge, Mode, Rounded, norm, round_train

State = Literal["reset", "carry"]


@dataclass(frozen=True)
class Chain:
    """Neighbouring factors that may be rounded together: their names, the bonds between, their keys (by width)."""

    factors: tuple[str, ...]
    bonds: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    axes: tuple[tuple[int | None, int | None], ...]
    """of every factor: the axis of its left and of its right bond inside the chain"""


@dataclass(frozen=True)
class SweepReport:
    """The size of every bond before and after, the numbers before and after, and the relative error made."""

    before: dict[str, int]
    after: dict[str, int]
    params_before: int
    params_after: int
    error: float
    """|T - T'|_F / |T|_F of the rounded chain, the largest over chains"""


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
    """Round the adapter's factors to ranks, to a relative error, or to a number of parameters (MetaTT, Algorithm 1).

    rank       of every bond (never above what it is), or one per bond; without a target nothing is truncated
    optimizer  whose moments of the changed factors are dropped (state="reset", the paper's way) or carried over by
               the change of basis (state="carry": exact for the mean without truncation, diagonal for the square)
    Parameters stay the same objects, so let go of an earlier loss first (`del loss`): its graph has the old shapes.
    Bonds of a generated factor stay as they are. Under torch.distributed, process 0 decides.
    ValueError: a method that is no chain, a merged or untrained adapter, ranks that grow; nothing is changed.
    """
    adapter, chains = _ready(model)
    if len(chains) > 1 and (tolerance or budget is not None):
        raise ValueError(f"sweep: the adapter has {len(chains)} chains of factors; give them a rank=... instead")
    before, params, scale, factors = _bond_sizes(adapter), adapter.num_params(), adapter.scale, adapter.factors
    wanted = _wanted(rank, before)
    if budget is not None:
        budget -= params - sum(factors[key].numel() for keys in chains[0].keys for key in keys)
    moments = _moments(optimizer, factors) if state == "carry" else {}
    new, new_moments, error = {}, {name: {} for name in moments}, 0.0
    sizes: dict[str, int] = {}
    for chain in chains:
        cores = _cores(chain, factors)
        ranks = [min(wanted[bond], core.shape[2]) for bond, core in zip(chain.bonds, cores, strict=False)]
        target = dict(ranks=ranks) if rank is not None else dict(tolerance=tolerance, budget=budget)
        found = _rounded(chain, cores, mode=mode, gauge=gauge, **target)
        error = max(error, _relative_error(cores, found.cores))
        new |= _split(chain, found.cores, factors)
        for name, tensors in moments.items():
            carried = _carried(cores, found.cores, _cores(chain, tensors), squared=name == "exp_avg_sq")
            new_moments[name] |= _split(chain, carried, factors)
        sizes |= {b: max(n, sizes.get(b, 0)) for b, n in zip(chain.bonds, found.ranks, strict=True)}
    sizes = {**before, **sizes}
    resize(adapter, replace(adapter.config, rank=sizes), new)
    for key in new:
        if adapter.placement.stored[key].factor == chains[0].factors[-1]:
            factors[key].mul_(scale / adapter.scale)  # alpha / r rises as r falls
    if optimizer is not None:
        _tell(optimizer, {key: factors[key] for key in new}, new_moments)
    return SweepReport(before, sizes, params, adapter.num_params(), error)


@torch.no_grad()
def resize(adapter: Adapter, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapter a configuration of other ranks or tasks, and the factors that fit it.

    Parameters stay the same objects, with other data: optimisers and the like keep their references.
    """
    placement = place(list(adapter.targets.values()), config, adapter.method)
    for key, stored in placement.stored.items():
        shape = tuple(tensors[key].shape) if key in tensors else tuple(adapter.factors[key].shape)
        if shape != stored.shape:
            raise ValueError(f"factor {key!r}: shape {shape} does not fit, expected {stored.shape}")
    adapter.replace(config, placement)
    for key, value in tensors.items():
        parameter = adapter.factors[key]
        parameter.data, parameter.grad = value.to(parameter).contiguous(), None
    for path, layer in adapter.layers.items():
        layer.cut = plan(placement.places[path], adapter.per_example)


def _ready(model: nn.Module) -> tuple[Adapter, list[Chain]]:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"sweep: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError("sweep: the adapter is merged; unmerge it first")
    return adapter, _chains(adapter)


def _rounded(chain: Chain, cores: Sequence[Tensor], **target: Any) -> Rounded:
    """`round_train`, its errors with the name of the chain; under torch.distributed, what process 0 found."""
    try:
        found = [round_train(cores, **target)]
    except ValueError as problem:
        raise ValueError(f"sweep of {chain.keys[0][0]!r} to {chain.keys[-1][0]!r}: {problem}") from None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


# ---- from factors to trains and back --------------------------------------------------------------------------------
def _chains(adapter: Adapter) -> list[Chain]:
    """Runs of neighbouring factors that no mapping net makes; one set for each network. ValueError for no chain."""
    method, stored = adapter.method, adapter.placement.stored
    if not method.is_chain:
        raise ValueError(f"sweep: the factors of {method.name!r} are no chain, so they have no sweep")
    terms, made = method.network.factors, set(adapter.generated if adapter.conditional else ())
    names = list(terms)
    bonds = [next(m for m in terms[a] if m in terms[b]) for a, b in zip(names, names[1:], strict=False)]
    runs, run = [], []
    for k, name in enumerate([*names, None]):
        if name is not None and name not in made:
            run.append(k)
            continue
        if len(run) > 1:
            runs.append(run)
        run = []
    if not runs:
        raise ValueError(f"sweep: {method.name!r} has no two neighbouring factors that are learned")
    owners = [""] if method.shared else list(adapter.targets)
    found = []
    for owner in owners:
        for run in runs:
            inside = [bonds[k] for k in run[:-1]]
            keys = tuple(
                tuple(key for key, one in stored.items() if one.factor == names[k] and _owner(key, one) in ("", owner))
                for k in run
            )
            axes = tuple(
                tuple(
                    stored[keys[j][0]].modes.index(bond) if bond in inside else None
                    for bond in (bonds[k - 1] if j else None, bonds[k] if j < len(run) - 1 else None)
                )
                for j, k in enumerate(run)
            )
            found.append(Chain(tuple(names[k] for k in run), tuple(inside), keys, axes))
    return found


def _owner(key: str, stored: Stored) -> str:
    """The target whose network a stored factor belongs to; "" for a common one."""
    return key.removesuffix(f".{stored.factor}") if key.endswith(f".{stored.factor}") else ""


def _cores(chain: Chain, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Every factor as (left bond, everything else, right bond), those of several widths one after another."""
    cores = []
    for keys, (left, right) in zip(chain.keys, chain.axes, strict=True):
        parts = []
        for key in keys:
            value = tensors[key].detach()
            ends = [axis for axis in (left, right) if axis is not None]
            between = [axis for axis in range(value.ndim) if axis not in ends]
            ordered = value.permute([*([] if left is None else [left]), *between, *([] if right is None else [right])])
            ordered = ordered[None] if left is None else ordered
            ordered = ordered[..., None] if right is None else ordered
            parts.append(ordered.flatten(1, -2) if ordered.ndim > 2 else ordered[:, None])
        cores.append(torch.cat(parts, 1))
    return cores


def _split(chain: Chain, cores: Sequence[Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cores back as factors: the widths apart, the axes where they were."""
    found = {}
    for keys, (left, right), core in zip(chain.keys, chain.axes, cores, strict=True):
        between = [[n for axis, n in enumerate(like[key].shape) if axis not in (left, right)] for key in keys]
        for key, sizes, part in zip(keys, between, core.split([prod(n) for n in between], 1), strict=True):
            value = part.unflatten(1, sizes) if sizes else part[:, 0]
            value = value[0] if left is None else value
            value = value[..., 0] if right is None else value
            order = [*([] if left is None else [left]), *(a for a in range(like[key].ndim) if a not in (left, right))]
            order += [] if right is None else [right]
            found[key] = value.permute([order.index(axis) for axis in range(like[key].ndim)])
    return found


def _bond_sizes(adapter: Adapter) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in adapter.placement.stored.values():
        for mode, size in zip(one.modes, one.shape, strict=True):
            if mode in adapter.method.network.bonds:
                found[mode] = max(found.get(mode, 0), size)
    return found


def _wanted(rank: int | Mapping[str, int] | None, now: dict[str, int]) -> dict[str, int]:
    if rank is None:
        return now
    if isinstance(rank, Mapping):
        for bond in rank:
            if bond not in now:
                raise ValueError(f"sweep: rank names bond {bond!r}{nearest(bond, now)}")
        wanted = {**now, **rank}
    else:
        if rank > max(now.values()):
            raise ValueError(f"sweep: rank {rank} grows above {max(now.values())}: a sweep can only lower ranks")
        wanted = {bond: min(rank, size) for bond, size in now.items()}
    for bond, size in wanted.items():
        if not 1 <= size <= now[bond]:
            raise ValueError(f"sweep: rank {size} of bond {bond!r} is not between 1 and {now[bond]}, what it is now")
    return wanted


def _relative_error(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    old, new = ([core.double() for core in train] for train in (old, new))
    cross = old[0].new_ones(1, 1)
    for a, b in zip(old, new, strict=True):
        cross = torch.einsum("ab,anc,bnd->cd", cross, a, b)
    square = norm(old) ** 2 - 2 * float(cross) + norm(new) ** 2
    return max(square, 0.0) ** 0.5 / norm(old)


# ---- the optimiser --------------------------------------------------------------------------------------------------
def _moments(optimizer: Any, factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """exp_avg and exp_avg_sq of the factors, where the optimiser has them for all."""
    states = {key: optimizer.state.get(parameter, {}) for key, parameter in factors.items()} if optimizer else {}
    names = [name for name in ("exp_avg", "exp_avg_sq") if states and all(name in one for one in states.values())]
    return {name: {key: one[name] for key, one in states.items()} for name in names}


def _carried(old: Sequence[Tensor], new: Sequence[Tensor], moment: Sequence[Tensor], *, squared: bool) -> list[Tensor]:
    """A gradient's moment in the new basis: g'_k = X_{k-1}' g_k Y_k', with X_k = argmin |L_k X - L'_k|, Y_k = pinv X_k.

    L_k is the product of the cores up to k. Of squares, with the entries of X and Y squared (a diagonal estimate).
    """
    gram = cross = old[0].new_ones(1, 1, dtype=torch.float64)
    before, carried = gram, []
    for k, (a, b, g) in enumerate(zip(old, new, moment, strict=True)):
        a, b, g = a.double(), b.double(), g.double()
        gram = torch.einsum("ab,anc,bnd->cd", gram, a, a)
        cross = torch.einsum("ab,anc,bnd->cd", cross, a, b)
        change = torch.linalg.pinv(gram, hermitian=True) @ cross if k < len(old) - 1 else torch.ones_like(gram)
        back = torch.linalg.pinv(change)
        x, y = (before.square(), back.square()) if squared else (before, back)
        carried.append(torch.einsum("ab,anc,dc->bnd", x, g, y))
        before = change
    return carried


def _tell(optimizer: Any, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, Mapping[str, Tensor]]) -> None:
    for key, parameter in parameters.items():
        if not moments:
            optimizer.state.pop(parameter, None)
        for name, tensors in moments.items():
            optimizer.state[parameter][name] = tensors[key].to(parameter).contiguous()
