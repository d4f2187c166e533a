"""Factors of an attached adapter fitted to low-rank updates, A_t B_t at every weight and task; no dense one is formed.

The updates' common bases make the two long axes short; the small tensor that is left, with an axis for every factor,
is cut into factors by what their wiring allows (`network.decomposition`).
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
from metalora.tensornet.gram import contract, environment, norm
from metalora.tensornet.topology import bond_sizes

FILLS = 10  # fits of a tensor some of whose entries no target reads
START = 0.3  # size of the random numbers that such entries start from, over that of the others
POLISH = 500  # iterations of L-BFGS, at most, after them


@dataclass(frozen=True)
class FitRow:
    """One target and task: |T|_F of the update and |T - T'|_F of what the factors make of it."""

    target: str
    task: int
    norm: float
    error: float


@dataclass(frozen=True)
class FitReport:
    """The error at every target and task, by Gram matrices: below 1e-8 of the norm it is rounding."""

    rows: tuple[FitRow, ...]

    @property
    def error(self) -> float:
        """|T - T'|_F / |T|_F of all together."""
        return _relative(self.rows)

    def by_target(self) -> dict[str, float]:
        """Path -> relative error over all tasks."""
        return {path: _relative([row for row in self.rows if row.target == path]) for path in self._paths}

    def by_task(self) -> list[float]:
        """Relative error of every task over all targets."""
        tasks = sorted({row.task for row in self.rows})
        return [_relative([row for row in self.rows if row.task == task]) for task in tasks]

    @property
    def _paths(self) -> list[str]:
        return list(dict.fromkeys(row.target for row in self.rows))


def _relative(rows: Sequence[FitRow]) -> float:
    total = sum(row.norm**2 for row in rows)
    return sqrt(sum(row.error**2 for row in rows) / total) if total else 0.0


@torch.no_grad()
def fit_updates(
    adapter: Adapter, updates: Sequence[Mapping[str, LowRankUpdate]], columns: Columns = "joint"
) -> FitReport:
    """Set the factors so that scale · network is near the updates: min sum_{t, path} |up down - Delta W_t|^2.

    updates  for every task, path -> LowRankUpdate; a target without one has a zero update
    columns  of a CP: fitted together, or one after another to what is left ("deflated")
    Computed in float64. ValueError: another number of tasks, an unknown path, shapes that do not fit, factors that are
    generated, frozen, no chain, tree or CP, or fold a weight into digits, a merged adapter; nothing is changed.
    """
    _check(adapter, updates)
    fits = [_PieceFit(adapter, piece, updates, columns) for piece in fitted_pieces(adapter)]
    new = [one.run() for one in fits]
    for tensors in new:
        for key, value in tensors.items():
            adapter.learned[key].copy_(value)
    return FitReport(tuple(row for one in fits for row in one.rows()))


def fitted_pieces(adapter: Adapter) -> list[FactorGroup]:
    """The sets of factors that are fitted together; ValueError for a method that is no chain, tree or CP by wiring."""
    method = adapter.method
    allowed = "only a chain, a tree (Tucker) or one shared bond (CP) of learned factors is fitted to updates"
    try:
        pieces = factor_groups(adapter)
    except ValueError:
        raise ValueError(f"method {method.name!r}: {allowed}") from None
    for piece in pieces:
        if piece.topology not in ("chain", "tree", "shared bond"):
            raise ValueError(f"method {method.name!r}: {allowed}, and {piece} is {piece.topology or 'none of them'}")
        if len(piece.factors) != len(method.factors):
            raise ValueError(f"method {method.name!r}: {allowed}, and {piece} is not all of its network")
    present = {mode for one in adapter.layout.params.values() for mode in one.modes}
    for side, modes in (("in", method.network.inputs), ("out", method.network.outputs)):
        edges = {*modes} & method.network.weight_modes & present
        held = [factor for factor, term in method.network.factors.items() if edges & {*term}]
        if len(held) != 1:
            how = f"folds {side!r} into digits" if side in method.network.folds else f"has them on {', '.join(held)}"
            raise ValueError(
                f"method {method.name!r}: the modes of {side!r} must be on one factor and it {how}, so a fit would "
                "need the dense one"
            )
    return pieces


def _check(adapter: Adapter, updates: Sequence[Mapping[str, LowRankUpdate]]) -> None:
    if adapter.merged:
        raise ValueError("fit: the adapter is merged; unmerge it first")
    if adapter.config.rank_pattern and adapter.config.alpha is not None:
        raise ValueError("fit: rank_pattern and alpha give every target a scale of its own; leave alpha out")
    if adapter.scale == 0:
        raise ValueError("fit: alpha is 0, so every update would be zero")
    if len(updates) != adapter.config.tasks:
        raise ValueError(f"fit: {len(updates)} sets of updates for an adapter of {adapter.config.tasks} tasks")
    for pairs in updates:
        for path, pair in pairs.items():
            if path not in adapter.targets:
                raise ValueError(f"fit: no target {path!r}{nearest(path, adapter.targets)}")
            sizes = adapter.targets[path].sizes
            inputs = [sizes[mode] for mode in ("in", "kh", "kw") if mode in sizes]
            if list(pair.down.shape[1:]) != inputs or tuple(pair.up.shape) != (sizes["out"], len(pair.down)):
                raise ValueError(
                    f"fit: update of {path!r} has shapes {tuple(pair.down.shape)} and {tuple(pair.up.shape)}, expected "
                    f"(rank, {', '.join(map(str, inputs))}) and ({sizes['out']}, rank)"
                )
            if not (torch.isfinite(pair.down).all() and torch.isfinite(pair.up).all()):
                raise ValueError(f"fit: update of {path!r} is not finite")


class _PieceFit:
    """The fit of the factors of one piece: blocks in, tensors by key out."""

    def __init__(
        self, adapter: Adapter, piece: FactorGroup, updates: Sequence[Mapping[str, LowRankUpdate]], columns: Columns
    ):
        self.adapter, self.piece, self.terms, self.columns = adapter, piece, piece.factor_bonds, columns
        self.blocks = target_updates(adapter, piece, updates)

    def run(self) -> dict[str, Tensor]:
        """The new value of every factor by key."""
        start = self._gathered()
        ranks = bond_sizes(self.terms, start)
        frames = leading_subspaces(self.piece, self.blocks, start, max(ranks.values()))
        core, read = _core(self.blocks, frames, [len(tensor) for tensor in start])
        if not core.any():
            zero = norm(self.terms, start) == 0  # then they can learn as they are
            return self.piece.scatter(start if zero else [*start[:-1], start[-1] * 0], self.adapter.factors)
        if read.all():
            small = factorise(self.terms, core, dict(ranks), self.columns)
        else:
            small = _filled(self.terms, core, read, ranks)
        found = _padded(self.terms, [frames[k].lift(t) if k in frames else t for k, t in enumerate(small)], ranks)
        found[-1] = found[-1] / self.adapter.scale
        return self.piece.scatter(found, self.adapter.factors)

    def rows(self) -> list[FitRow]:
        """|T - T'|^2 = |T|^2 - 2 <T, T'> + |T'|^2 of every block, with the factors as they are stored now."""
        tensors, found = self._gathered(), []
        for block in self.blocks:
            mine = [tensor[rows] for tensor, rows in zip(tensors, block.rows, strict=True)]
            mine[-1] = mine[-1] * self.adapter.scale
            whole, cross = block.square, block.inner(self.terms, mine)
            square = whole - 2 * cross + float(environment(self.terms, mine, mine))
            found.append(FitRow(block.path, block.task, sqrt(whole), sqrt(max(square, 0.0))))
        return found

    def _gathered(self) -> list[Tensor]:
        return [tensor.double().cpu() for tensor in self.piece.gather(self.adapter.factors)]


def _core(
    blocks: Sequence[TargetUpdate], frames: Mapping[int, Subspace], sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The updates in their frames, an axis for every factor, and which entries a target reads (their mean, if many)."""
    sizes = [frames[k].width if k in frames else n for k, n in enumerate(sizes)]
    core, count = torch.zeros(sizes, dtype=torch.float64), torch.zeros(sizes, dtype=torch.int32)
    for block in blocks:
        index = [frames[k].columns(rows) if k in frames else rows for k, rows in enumerate(block.rows)]
        grid = torch.meshgrid(*index, indexing="ij")
        count[grid] += 1
        if block.left is not None:
            core[grid] += block.seen(frames).reshape([len(pick) for pick in index])
    return core / count.clamp_min(1), count > 0


def _filled(terms: Sequence[Sequence[str]], core: Tensor, read: Tensor, ranks: Mapping[str, int]) -> list[Tensor]:
    """The factors of the core; entries that no target reads are free.

    They are filled by what the last fit made of them, so that the next best fit never raises the error over the
    others; in the end the factors are fitted to the others alone by L-BFGS. Filled with zeros at first it would stay
    near them: 8 of 8 exact networks of two widths were found from random ones, none from zeros.
    """
    drawn = torch.Generator().manual_seed(0)
    noise = torch.randn(core.shape, generator=drawn, dtype=core.dtype) * (START * core.norm() / read.sum().sqrt())
    mine = factorise(terms, torch.where(read, core, noise), dict(ranks))
    for _ in range(FILLS):
        mine = factorise(terms, torch.where(read, core, _dense(terms, mine)), dict(ranks))
    return _polished(terms, core, read, mine)


def _dense(terms: Sequence[Sequence[str]], tensors: Sequence[Tensor]) -> Tensor:
    labels = [f"#{k}" for k in range(len(terms))]
    return contract([(t, [labels[k], *terms[k]]) for k, t in enumerate(tensors)], labels)


def _polished(terms: Sequence[Sequence[str]], core: Tensor, read: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    size = core.norm()
    mine = [tensor.clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in tensors]
    optimizer = torch.optim.LBFGS(
        mine,
        max_iter=POLISH,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.where(read, _dense(terms, mine) - core, 0.0).div(size).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return [tensor.detach() for tensor in mine]


def _padded(terms: Sequence[Sequence[str]], tensors: Sequence[Tensor], ranks: Mapping[str, int]) -> list[Tensor]:
    """The same network with bonds of these sizes: new entries are random, and zero in the last factor of their bond.

    So Delta W is as it was, and gradients reach them.
    """
    drawn, now, found = torch.Generator().manual_seed(0), bond_sizes(terms, tensors), []
    for k, (term, tensor) in enumerate(zip(terms, tensors, strict=True)):
        shape = (len(tensor), *(ranks[bond] for bond in term))
        larger = torch.randn(shape, generator=drawn, dtype=tensor.dtype) * tensor.square().mean().sqrt()
        for axis, bond in enumerate(term, start=1):
            if not any(bond in later for later in terms[k + 1 :]):
                larger.narrow(axis, now[bond], ranks[bond] - now[bond]).zero_()
        larger[tuple(slice(n) for n in tensor.shape)] = tensor
        found.append(larger)
    return found
