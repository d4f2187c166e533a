"""Rank-adaptive sweeps of an attached adapter: its factors are truncated, and its optimiser follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalora._util.processes import of_process_0
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.adapters.layout import build_layout
from metalora.adapters.resize import resize
from metalora.config import AdapterConfig
from metalora.methods.resolve import resolve
from metalora.ranks.groups import FactorGroup, factor_groups
from metalora.ranks.sensitivity import LossSensitivity
from metalora.tensornet.topology import bond_sizes
from metalora.tensornet.truncation.gauge import Gauge
from metalora.tensornet.truncation.moments import transport_moments
from metalora.tensornet.truncation.truncate import Mode, TruncatedNetwork, truncate

State = Literal["reset", "carry"]
TensorsByKey = dict[str, Tensor]

MEAN, SQUARE = "exp_avg", "exp_avg_sq"  # the names of Adam's moments in an optimiser's state


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep.

    Attributes:
        before: Bond -> its size before.
        after: Bond -> its size after.
        params_before: The number of learned parameters before.
        params_after: The number of learned parameters after.
        error: |T - T'|_F / |T|_F of the factors that are truncated jointly, the largest over all groups of them.

    Example:
        >>> report = SweepReport({"r": 8}, {"r": 4}, params_before=1024, params_after=512, error=0.05)
        >>> report.after["r"] / report.before["r"]
        0.5
    """

    before: dict[str, int]
    after: dict[str, int]
    params_before: int
    params_after: int
    error: float


@torch.no_grad()
def sweep(
    model: nn.Module,
    *,
    rank: int | Mapping[str, int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
    optimizer: Optimizer | None = None,
    state: State = "reset",
    importance: LossSensitivity | None = None,
) -> SweepReport:
    """Truncate an adapter's factors to ranks, to a relative error, or to a number of parameters.

    The algorithm follows from the topology of the factors: chains (MetaTT) and trees (Tucker) by HOSVD and HOOI, rings
    bond by bond with a fit, factors that share one bond (CP) by the columns that matter most; see
    `metalora.tensornet.truncation`. Bonds of a generated factor stay as they are. Parameters stay the same objects, so
    delete an earlier loss first (`del loss`): its graph has the old shapes. Under torch.distributed, process 0 decides.

    Args:
        model: A model with an adapter.
        rank: The size of every bond (never above what it is), or bond -> size. Without rank, tolerance and budget
            nothing is truncated, but the factors are put in the gauge.
        tolerance: |T - T'|_F <= tolerance |T|_F.
        budget: The largest number of learned parameters.
        mode: "paper": MetaTT's Algorithm 1 as printed, for chains only.
        gauge: Where the norm is afterwards: in the last factor ("left"), in the first ("right"), shared by all
            ("balanced").
        optimizer: Its moments of the factors are dropped (state="reset", as in the paper) or carried over by the change
            of basis (state="carry": exact for the mean if nothing is truncated, diagonal for the square).
        state: What becomes of the moments.
        importance: The sensitivity of the loss: the singular values (columns of CP) with the highest scores s |dL/ds|
            stay, not the largest, and what stays is not fitted afterwards. A budget goes to the highest scores of all
            bonds. Not for rings, nor with mode="paper".

    Returns:
        The ranks and numbers of parameters before and after, and the error.

    Raises:
        ValueError: The model has no adapter, or it is merged, untrained or has a rank_pattern; factors of another
            topology; state="carry" or importance for a ring; ranks that grow; an importance of another adapter, or
            without a batch since the last sweep. Nothing is changed then.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> adapter = attach(model, AdapterConfig("lora", rank=4, targets=("0", "1")))
        >>> for factor in adapter.learned.values():
        ...     _ = nn.init.normal_(factor)
        >>> report = sweep(model, rank=2)
        >>> report.before, report.after, report.params_after
        ({'r': 4}, {'r': 2}, 64)
    """
    adapter = ready_adapter(model, "sweep")
    groups = factor_groups(adapter)
    _check_groups(adapter, groups, state, needs_one=bool(tolerance) or budget is not None)
    if importance is not None and importance.adapter is not adapter:
        raise ValueError("sweep: the importance was recorded for another adapter")
    sizes_before, params_before, scale_before = rank_sizes(adapter), adapter.num_params(), adapter.scale
    free_bonds = {bond for group in groups for bonds in group.factor_bonds for bond in bonds}
    wanted = None if rank is None else _wanted_ranks(rank, sizes_before, free_bonds)
    if budget is not None:
        # the budget counts all learned parameters, and only those of the group can become fewer
        budget -= params_before - _num_params(adapter, groups[0])
    moments = _optimizer_moments(optimizer, adapter.learned) if state == "carry" else {}
    truncation = _Truncation(adapter, moments)
    for number, group in enumerate(groups):
        gradients = None if importance is None else importance.of_group(number)
        truncation.add(group, wanted, tolerance, budget, mode, gauge, gradients)
    absent = {bond: 1 for bond in adapter.method.rank_bonds if bond not in sizes_before}  # a component without targets
    config = replace(adapter.config, rank={**absent, **sizes_before, **truncation.sizes})
    factors, new_moments = truncation.padded(config)
    # all refusals are above this line: the adapter is as it was until here
    resize(adapter, config, factors)
    _keep_delta(adapter, groups[0].factors[-1], scale_before / adapter.scale, factors, new_moments)
    if optimizer is not None:
        _update_optimizer(optimizer, {key: adapter.learned[key] for key in factors}, new_moments)
    sizes_after = {**absent, **sizes_before, **truncation.sizes}
    return SweepReport(sizes_before, sizes_after, params_before, adapter.num_params(), truncation.error)


@dataclass
class _Truncation:
    """The truncated factors of all groups, collected before the adapter is changed.

    Attributes:
        adapter: The adapter, which stays as it is.
        moments: Name of a moment ("exp_avg") -> key -> tensor, to be carried over.
        factors: Key -> truncated factor.
        new_moments: Name -> key -> tensor in the new basis.
        sizes: Bond -> its size, the largest over all groups.
        error: The largest relative error.
    """

    adapter: Adapter
    moments: Mapping[str, TensorsByKey]
    factors: TensorsByKey = field(default_factory=dict)
    new_moments: dict[str, TensorsByKey] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    error: float = 0.0

    def add(
        self,
        group: FactorGroup,
        wanted: Mapping[str, int] | None,
        tolerance: float,
        budget: int | None,
        mode: Mode,
        gauge: Gauge,
        gradients: Mapping[str, Tensor] | None,
    ) -> None:
        """Truncate a group."""
        factors = self.adapter.factors
        tensors = group.gather(factors)
        ranks = None
        if wanted is not None:
            # a target that is narrower than the wanted rank keeps the rank that it has
            ranks = {bond: min(wanted[bond], size) for bond, size in bond_sizes(group.factor_bonds, tensors).items()}
        truncated = _truncate_group(group, tensors, ranks, tolerance, budget, mode, gauge, gradients)
        self.error = max(self.error, truncated.error)
        self.factors |= group.scatter(truncated.tensors, factors)
        for name, moments in self.moments.items():
            # the moments have the shapes of the factors, so that they are gathered and scattered in the same way
            transported = transport_moments(
                group.factor_bonds, tensors, truncated.tensors, group.gather(moments), squared=name == SQUARE
            )
            self.new_moments.setdefault(name, {}).update(group.scatter(transported, factors))
        for bond, size in truncated.ranks.items():
            self.sizes[bond] = max(size, self.sizes.get(bond, 0))

    def padded(self, config: AdapterConfig) -> tuple[TensorsByKey, dict[str, TensorsByKey]]:
        """The factors and the moments with zeros up to their shapes under a configuration.

        A rank that is too large at one target need not be at another, but all targets have one size of a bond.
        """
        # the layout alone knows which rank is clipped at which target
        params = build_layout(list(self.adapter.targets.values()), resolve(config)).params
        shapes = {key: param.shape for key, param in params.items()}
        factors = {key: _pad(tensor, shapes[key]) for key, tensor in self.factors.items()}
        moments = {
            name: {key: _pad(tensor, shapes[key]) for key, tensor in tensors.items()}
            for name, tensors in self.new_moments.items()
        }
        return factors, moments


def ready_adapter(model: nn.Module, verb: str) -> Adapter:
    """Return the adapter of a model if its ranks can be changed.

    Args:
        model: The model.
        verb: What is about to change them, for the message.

    Raises:
        ValueError: There is no adapter, or it is merged or has a rank_pattern.

    Example:
        >>> ready_adapter(nn.Linear(2, 2), "sweep")
        Traceback (most recent call last):
        ValueError: sweep: Linear has no adapter
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{verb}: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError(f"{verb}: the adapter is merged; unmerge it first")
    if adapter.config.rank_pattern:
        raise ValueError(f"{verb}: the adapter has a rank_pattern, and a {verb} knows one rank a bond")
    return adapter


def _check_groups(adapter: Adapter, groups: Sequence[FactorGroup], state: State, needs_one: bool) -> None:
    for group in groups:
        if state == "carry" and group.topology == "ring":
            raise ValueError(
                f"sweep of {group}: a ring is truncated by a fit, and moments can be carried over by a change of "
                "basis only; use state='reset'"
            )
    if needs_one and len(groups) > 1:
        networks = f"{len(groups)} {groups[0].topology}s of factors"
        raise ValueError(f"sweep: the adapter has {networks}; give them a rank=... instead")


def _truncate_group(
    group: FactorGroup,
    tensors: Sequence[Tensor],
    ranks: Mapping[str, int] | None,
    tolerance: float,
    budget: int | None,
    mode: Mode,
    gauge: Gauge,
    gradients: Mapping[str, Tensor] | None,
) -> TruncatedNetwork:
    """`truncate`, its errors with the name of the group; under torch.distributed, the result of process 0."""
    try:
        truncated = truncate(
            group.factor_bonds,
            tensors,
            ranks=ranks,
            tolerance=tolerance,
            budget=budget,
            mode=mode,
            gauge=gauge,
            gradients=gradients,
        )
    except ValueError as problem:
        raise ValueError(f"sweep of {group}: {problem}") from None
    return of_process_0(truncated)


def _pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros after the entries of every axis that is shorter than in `shape`."""
    padding: list[int] = []
    for wanted, size in zip(reversed(shape), reversed(tensor.shape), strict=True):  # `pad` takes the last axis first
        padding += [0, max(wanted - size, 0)]
    return nn.functional.pad(tensor, padding)


def _keep_delta(
    adapter: Adapter, factor: str, ratio: float, factors: Collection[str], moments: Mapping[str, TensorsByKey]
) -> None:
    """Multiply one factor by `ratio` and divide its gradients by it: alpha / r rises as r falls, and Delta W stays."""
    for key in factors:
        if adapter.layout.params[key].factor == factor:
            adapter.factors[key].mul_(ratio)
            for name, tensors in moments.items():
                power = 2 if name == SQUARE else 1  # the second moment is one of squared gradients
                tensors[key] = tensors[key] / ratio**power


def rank_sizes(adapter: Adapter) -> dict[str, int]:
    """Bond -> its size, the largest over all stored factors.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> rank_sizes(attach(nn.Sequential(nn.Linear(8, 8)), AdapterConfig("lora", rank=4, targets=("0",))))
        {'r': 4}
    """
    sizes: dict[str, int] = {}
    for param in adapter.layout.params.values():
        for mode, size in zip(param.modes, param.shape, strict=True):
            if mode in adapter.method.rank_bonds:
                sizes[mode] = max(sizes.get(mode, 0), size)
    return sizes


def _num_params(adapter: Adapter, group: FactorGroup) -> int:
    return sum(adapter.factors[key].numel() for keys in group.keys for key in keys)


def _wanted_ranks(
    rank: int | Mapping[str, int], sizes_now: Mapping[str, int], free_bonds: Collection[str]
) -> dict[str, int]:
    """Bond -> the size that the user asks for, checked."""
    if isinstance(rank, Mapping):
        for bond, size in rank.items():
            if bond not in sizes_now:
                raise ValueError(f"sweep: rank names bond {bond!r}{nearest(bond, sizes_now)}")
            if bond not in free_bonds and size != sizes_now[bond]:
                raise ValueError(f"sweep: bond {bond!r} is that of a generated factor and stays at {sizes_now[bond]}")
        # a bond that is not named keeps its size
        wanted = {**sizes_now, **rank}
    else:
        largest = max(sizes_now.values())
        if rank > largest:
            raise ValueError(f"sweep: rank {rank} grows above {largest}: a sweep can only lower ranks")
        wanted = {bond: min(rank, size) for bond, size in sizes_now.items()}
    for bond, size in wanted.items():
        if not 1 <= size <= sizes_now[bond]:
            raise ValueError(
                f"sweep: rank {size} of bond {bond!r} is not between 1 and {sizes_now[bond]}, what it is now"
            )
    return wanted


# ---- the optimiser --------------------------------------------------------------------------------------------------
def _optimizer_moments(optimizer: Optimizer | None, parameters: Mapping[str, nn.Parameter]) -> dict[str, TensorsByKey]:
    """Name of a moment -> key -> moment (of the factor's shape); only those that all parameters have."""
    if optimizer is None:
        return {}
    states = {key: optimizer.state.get(parameter, {}) for key, parameter in parameters.items()}
    # an optimiser that has not made a step has no moments, and SGD has none of these names
    names = [name for name in (MEAN, SQUARE) if states and all(name in state for state in states.values())]
    return {name: {key: state[name] for key, state in states.items()} for name in names}


def _update_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], moments: Mapping[str, TensorsByKey]
) -> None:
    """Set the carried moments of the parameters; without any, drop their state."""
    for key, parameter in parameters.items():
        if not moments:  # the optimiser then starts with new moments, and a step count of zero
            optimizer.state.pop(parameter, None)
        for name, tensors in moments.items():
            optimizer.state[parameter][name] = tensors[key].to(parameter).contiguous()
