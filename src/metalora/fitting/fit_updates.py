"""Factors of an attached adapter fitted to low-rank updates at every weight and task; no dense update is formed.

Subspaces that the updates share make the two long axes short. What is left is a small tensor with an axis for every
factor; it is factorised by what the topology of the factors allows (`metalora.tensornet.decomposition`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.fitting.updates import LowRankUpdate, Subspace, TargetUpdate, leading_subspaces, target_updates
from metalora.ranks.groups import FactorGroup, factor_groups
from metalora.tensornet.decomposition import Columns, factorise
from metalora.tensornet.gram import dense_tensor, environment, norm
from metalora.tensornet.topology import FactorBonds, bond_sizes

FILLING_FITS = 10  # of a tensor some of whose entries no target reads
FILLING_SCALE = 0.3  # root mean square of the random numbers that such entries start from, over that of the others
LBFGS_ITERATIONS = 500  # at most, after these fits


@dataclass(frozen=True)
class FitRow:
    """The fit of one target and task.

    Attributes:
        target: The path of the target.
        task: The number of the task.
        norm: |Delta W|_F of the update.
        error: |Delta W - Delta W'|_F, Delta W' being that of the fitted factors.

    Example:
        >>> row = FitRow("query", task=0, norm=2.0, error=0.2)
        >>> row.error / row.norm
        0.1
    """

    target: str
    task: int
    norm: float
    error: float


@dataclass(frozen=True)
class FitReport:
    """The fit of all targets and tasks; an error below 1e-8 of the norm is rounding (Gram matrices).

    Attributes:
        rows: One for every target and task.

    Example:
        >>> report = FitReport((FitRow("q", 0, norm=2.0, error=0.2), FitRow("q", 1, norm=1.0, error=0.5)))
        >>> report.by_task()
        [0.1, 0.5]
    """

    rows: tuple[FitRow, ...]

    @property
    def error(self) -> float:
        """|Delta W - Delta W'|_F / |Delta W|_F of all targets and tasks together."""
        return _relative_error(self.rows)

    def by_target(self) -> dict[str, float]:
        """Return path -> relative error over all tasks."""
        rows_by_path: dict[str, list[FitRow]] = {}
        for row in self.rows:
            rows_by_path.setdefault(row.target, []).append(row)
        return {path: _relative_error(rows) for path, rows in rows_by_path.items()}

    def by_task(self) -> list[float]:
        """Return the relative error of every task over all targets."""
        tasks = sorted({row.task for row in self.rows})
        return [_relative_error([row for row in self.rows if row.task == task]) for task in tasks]


def _relative_error(rows: Sequence[FitRow]) -> float:
    square = sum(row.norm**2 for row in rows)
    return sqrt(sum(row.error**2 for row in rows) / square) if square else 0.0  # zero updates are fitted exactly


@torch.no_grad()
def fit_updates(
    adapter: Adapter, updates: Sequence[Mapping[str, LowRankUpdate]], columns: Columns = "joint"
) -> FitReport:
    """Set the factors so that scale · network is near the updates: min sum_{t, path} |up down - Delta W_t|^2.

    Computed in float64.

    Args:
        adapter: An attached adapter.
        updates: For every task, path -> update; a target that is missing has a zero update.
        columns: Of a CP: all columns are fitted together ("joint"), or one after another to what the ones before it
            leave ("deflated").

    Returns:
        The error at every target and task.

    Raises:
        ValueError: Another number of tasks, an unknown path, shapes that do not fit; factors that are generated or
            frozen, are not a chain, tree or CP, or fold a side of a weight into digits; a merged adapter. Nothing is
            changed then.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> adapter = attach(nn.Sequential(nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets=("0",)))
        >>> update = LowRankUpdate(down=torch.randn(2, 8), up=torch.randn(4, 2))
        >>> fit_updates(adapter, [{"0": update}]).error < 1e-6
        True
        >>> torch.allclose(adapter.delta("0"), update.up @ update.down, atol=1e-5)
        True
    """
    _check(adapter, updates)
    fits = [_GroupFit(adapter, group, updates, columns) for group in fitted_groups(adapter)]
    factors = [fit.run() for fit in fits]  # all of them, before the adapter is changed
    for by_key in factors:
        for key, value in by_key.items():
            adapter.learned[key].copy_(value)
    return FitReport(tuple(row for fit in fits for row in fit.rows()))


def fitted_groups(adapter: Adapter) -> list[FactorGroup]:
    """Find the groups of factors that are fitted jointly.

    Raises:
        ValueError: The network is not a chain, tree or CP of learned factors, or the modes of one side of the weight
            are on several factors.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> adapter = attach(nn.Sequential(nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets=("0",)))
        >>> [group.topology for group in fitted_groups(adapter)]
        ['chain']
    """
    method = adapter.method
    allowed = "only a chain, a tree (Tucker) or one shared bond (CP) of learned factors is fitted to updates"
    try:
        groups = factor_groups(adapter)
    except ValueError:
        raise ValueError(f"method {method.name!r}: {allowed}") from None
    for group in groups:
        if group.topology not in ("chain", "tree", "shared bond"):
            raise ValueError(f"method {method.name!r}: {allowed}, and {group} is {group.topology or 'none of them'}")
        if len(group.factors) != len(method.factors):
            raise ValueError(f"method {method.name!r}: {allowed}, and {group} is not all of its network")
    _check_sides(adapter)
    return groups


def _check_sides(adapter: Adapter) -> None:
    """Each side of the weight must be on one factor, so that its long axis can be made short."""
    method, network = adapter.method, adapter.method.network
    stored_modes = {mode for param in adapter.layout.params.values() for mode in param.modes}
    for side, modes in (("in", network.inputs), ("out", network.outputs)):
        weight_modes = {*modes} & network.weight_modes & stored_modes
        holders = [factor for factor, factor_modes in network.factors.items() if weight_modes & {*factor_modes}]
        if len(holders) != 1:
            how = f"folds {side!r} into digits" if side in network.folds else f"has them on {', '.join(holders)}"
            raise ValueError(
                f"method {method.name!r}: the modes of {side!r} must be on one factor and it {how}, so a fit would "
                "need the dense one"
            )


def _check(adapter: Adapter, updates: Sequence[Mapping[str, LowRankUpdate]]) -> None:
    if adapter.merged:
        raise ValueError("fit: the adapter is merged; unmerge it first")
    if adapter.config.alpha_pattern or (adapter.config.rank_pattern and adapter.config.alpha is not None):
        raise ValueError(
            "fit: rank_pattern with alpha, and alpha_pattern, give targets scales of their own; leave alpha out"
        )
    if len(updates) != adapter.config.tasks:
        raise ValueError(f"fit: {len(updates)} sets of updates for an adapter of {adapter.config.tasks} tasks")
    for by_path in updates:
        for path, update in by_path.items():
            _check_update(adapter, path, update)


def _check_update(adapter: Adapter, path: str, update: LowRankUpdate) -> None:
    if path not in adapter.targets:
        raise ValueError(f"fit: no target {path!r}{nearest(path, adapter.targets)}")
    sizes = adapter.targets[path].sizes
    inputs = [sizes[mode] for mode in ("in", "kh", "kw") if mode in sizes]
    down, up = update
    # The kernel of three axes has two modes, depth . height and width.
    axes = list(down.flatten(2, 3).shape[1:] if down.ndim == 5 else down.shape[1:])
    if axes != inputs or tuple(up.shape) != (sizes["out"], len(down)):
        raise ValueError(
            f"fit: update of {path!r} has shapes {tuple(down.shape)} and {tuple(up.shape)}, expected "
            f"(rank, {', '.join(map(str, inputs))}) and ({sizes['out']}, rank)"
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError(f"fit: update of {path!r} is not finite")


class _GroupFit:
    """The fit of the factors of one group."""

    def __init__(
        self, adapter: Adapter, group: FactorGroup, updates: Sequence[Mapping[str, LowRankUpdate]], columns: Columns
    ):
        self.adapter, self.group, self.columns = adapter, group, columns
        self.factor_bonds = group.factor_bonds
        self.updates = target_updates(adapter, group, updates)

    def run(self) -> dict[str, Tensor]:
        """Fit the factors; the adapter stays as it is.

        Returns:
            Key -> new value, of the shape of the stored factor (open axes and bonds in its order), in float64.
        """
        factors_now = self._flat_factors()  # (n, *bonds) each
        ranks = bond_sizes(self.factor_bonds, factors_now)
        sizes = [len(factor) for factor in factors_now]
        subspaces = leading_subspaces(self.updates, sizes, max(ranks.values()))
        # a tensor with an axis of a few columns for each long axis, small enough to be dense
        core, is_read = _core(self.updates, subspaces, sizes)
        if not core.any():
            return self.group.scatter(self._zero_network(factors_now), self.adapter.factors)
        if is_read.all():
            small_factors = factorise(self.factor_bonds, core, ranks, self.columns)
        else:
            small_factors = _fit_with_free_entries(self.factor_bonds, core, is_read, ranks)
        expanded = [
            subspaces[number].expand(factor) if number in subspaces else factor
            for number, factor in enumerate(small_factors)
        ]
        # the update may need less than the ranks of the adapter, whose shapes stay
        factors = _padded(self.factor_bonds, expanded, ranks)
        factors[-1] = factors[-1] / self.adapter.scale  # Delta W is scale · network
        return self.group.scatter(factors, self.adapter.factors)

    def _zero_network(self, factors_now: Sequence[Tensor]) -> list[Tensor]:
        """Factors (n, *bonds) that give no update but can still learn.

        They are those of now, the last one zero unless they give none already.
        """
        if norm(self.factor_bonds, factors_now) == 0:
            return list(factors_now)
        return [*factors_now[:-1], torch.zeros_like(factors_now[-1])]

    def rows(self) -> list[FitRow]:
        """|T - T'|^2 = |T|^2 - 2 <T, T'> + |T'|^2 of every update T, with the factors as they are stored now."""
        factors = self._flat_factors()
        rows: list[FitRow] = []
        for update in self.updates:
            # the slices of the factors that this target and task read
            at_target = [factor[entries] for factor, entries in zip(factors, update.indices, strict=True)]
            at_target[-1] = at_target[-1] * self.adapter.scale
            inner_product = update.inner_product(self.factor_bonds, at_target)
            network_square = float(environment(self.factor_bonds, at_target, at_target))
            error_square = update.square - 2 * inner_product + network_square
            rows.append(FitRow(update.path, update.task, sqrt(update.square), sqrt(max(error_square, 0.0))))
        return rows

    def _flat_factors(self) -> list[Tensor]:
        """(n, *bonds) for every factor, in float64."""
        return [factor.double().cpu() for factor in self.group.gather(self.adapter.factors)]


def _core(
    updates: Sequence[TargetUpdate], subspaces: Mapping[int, Subspace], sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The updates in their subspaces as one tensor.

    Returns:
        The tensor (n_1, n_2, ...) with an axis for every factor, the mean if several targets read an entry; and which
        entries are read, a bool of the same shape.
    """
    core_sizes = [subspaces[number].num_columns if number in subspaces else size for number, size in enumerate(sizes)]
    core = torch.zeros(core_sizes, dtype=torch.float64)
    readers = torch.zeros(core_sizes, dtype=torch.int32)
    for target_update in updates:
        index = [
            subspaces[number].columns_at(entries) if number in subspaces else entries
            for number, entries in enumerate(target_update.indices)
        ]
        grid = torch.meshgrid(*index, indexing="ij")  # index tensors of the block that the target reads
        readers[grid] += 1  # no entry occurs twice in a grid, so += counts it once
        if target_update.update is not None:
            projected = target_update.projected(target_update.update, subspaces)
            core[grid] += projected.reshape([len(entries) for entries in index])
    # the mean has the least squared error over all readers of an entry
    return core / readers.clamp_min(1), readers > 0


def _fit_with_free_entries(
    factor_bonds: FactorBonds, core: Tensor, is_read: Tensor, ranks: Mapping[str, int]
) -> list[Tensor]:
    """Factorise the core, the entries that no target reads being free.

    They are filled with what the last fit made of them, so that the next best fit never raises the error over the
    others; at the end the factors are fitted to the others alone by L-BFGS. Filled with zeros at first, the fit would
    stay near them: 8 of 8 exact networks of two widths were found from random numbers, none from zeros.

    Args:
        factor_bonds: The bonds of every factor.
        core: (n_1, n_2, ...), an axis for every factor.
        is_read: The same shape, of bool.
        ranks: Bond -> the largest rank.

    Returns:
        Factors (n_k, *bonds).
    """
    generator = torch.Generator().manual_seed(0)
    scale = FILLING_SCALE * core.norm() / is_read.sum().sqrt()
    noise = torch.randn(core.shape, generator=generator, dtype=core.dtype) * scale
    factors = factorise(factor_bonds, torch.where(is_read, core, noise), ranks)
    for _ in range(FILLING_FITS):
        filled = torch.where(is_read, core, dense_tensor(factor_bonds, factors))
        factors = factorise(factor_bonds, filled, ranks)
    return _fit_read_entries(factor_bonds, core, is_read, factors)


def _fit_read_entries(
    factor_bonds: FactorBonds, core: Tensor, is_read: Tensor, start: Sequence[Tensor]
) -> list[Tensor]:
    """The factors (n_k, *bonds) with the least squared error over the entries that are read, by L-BFGS."""
    core_norm = core.norm()
    factors = [factor.clone(memory_format=torch.contiguous_format).requires_grad_() for factor in start]
    optimizer = torch.optim.LBFGS(
        factors,
        max_iter=LBFGS_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        # relative to the norm, so that the tolerances of L-BFGS mean the same for any size of the updates
        difference = dense_tensor(factor_bonds, factors) - core
        value = torch.where(is_read, difference, 0.0).div(core_norm).square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return [factor.detach() for factor in factors]


def _padded(factor_bonds: FactorBonds, tensors: Sequence[Tensor], ranks: Mapping[str, int]) -> list[Tensor]:
    """The same network with bonds of these sizes: Delta W is as it was, and gradients reach the new entries.

    (n_k, *bonds) each; new entries are random, and zero in the last factor of their bond.
    """
    generator = torch.Generator().manual_seed(0)
    sizes_now = bond_sizes(factor_bonds, tensors)
    last_factor = {bond: number for number, bonds in enumerate(factor_bonds) for bond in bonds}
    padded: list[Tensor] = []
    for number, (bonds, tensor) in enumerate(zip(factor_bonds, tensors, strict=True)):
        shape = (len(tensor), *(ranks[bond] for bond in bonds))
        larger = torch.randn(shape, generator=generator, dtype=tensor.dtype) * tensor.square().mean().sqrt()
        for axis, bond in enumerate(bonds, start=1):
            if last_factor[bond] == number:  # random on one side of the bond, zero on the other: no change of Delta W
                larger.narrow(axis, sizes_now[bond], ranks[bond] - sizes_now[bond]).zero_()
        larger[tuple(slice(size) for size in tensor.shape)] = tensor
        padded.append(larger)
    return padded
