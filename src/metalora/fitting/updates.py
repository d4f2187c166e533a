"""Low-rank updates of weights as the factors of a network see them, and the common bases of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import read_slice
from metalora.ranks.groups import FactorGroup
from metalora.tensornet.gram import contract

OVERSAMPLING = 16  # directions of a common basis above the rank
ITERATIONS = 5  # of the subspace iteration that finds one


class LowRankUpdate(NamedTuple):
    """A low-rank update up · down, its scale included."""

    down: Tensor
    """(rank, in) or (rank, in, kh, kw)"""
    up: Tensor
    """(out, rank)"""


@dataclass(frozen=True)
class TargetUpdate:
    """The update of a target and task as a piece's factors see it.

    rows    of every factor: the entries of its flat axis that the target reads
    lefts   the factors with modes of the input side, rights those of the output side, the longest first
    left    (rank, n of every factor in lefts), right (rank, n of every factor in rights); None: a zero update
    """

    path: str
    task: int
    rows: list[Tensor]
    lefts: list[int]
    rights: list[int]
    left: Tensor | None
    right: Tensor | None

    @property
    def square(self) -> float:
        """|T|^2, by Gram matrices of the rank."""
        if self.left is None:
            return 0.0
        left, right = self.left.flatten(1), self.right.flatten(1)
        return max(float(((left @ left.mT) * (right @ right.mT)).sum()), 0.0)

    def inner(self, terms: Sequence[Sequence[str]], tensors: Sequence[Tensor]) -> float:
        """<T, T'> with the rows of the factors that the target reads."""
        if self.left is None:
            return 0.0
        operands = [(tensor, [f"#{k}", *term]) for k, (term, tensor) in enumerate(zip(terms, tensors, strict=True))]
        left, right = (["#rank", *(f"#{k}" for k in side)] for side in (self.lefts, self.rights))
        return float(contract([(self.left, left), (self.right, right), *operands], []))

    def seen(self, frames: Mapping[int, Subspace]) -> Tensor:
        """The update in the frames, its axes in the order of the factors."""
        value = torch.tensordot(self._framed(self.lefts, frames), self._framed(self.rights, frames), ([0], [0]))
        axes = [*self.lefts, *self.rights]
        return value.permute([axes.index(k) for k in sorted(axes)])

    def gram_times(self, k: int, basis: Tensor, frames: Mapping[int, Subspace]) -> Tensor:
        """X X' basis, X the update as a matrix (n_k, everything else): (n_k, columns of the basis)."""
        sides = (self.lefts, self.rights)
        own, other = sides if k in self.lefts else sides[::-1]
        mine = (self.left if own is self.lefts else self.right).movedim(1, -1)  # (rank, others, n_k)
        gram = self._framed(other, frames).flatten(1)
        rest = torch.tensordot(gram @ gram.mT, mine @ basis, 1)  # (rank, others, columns)
        return mine.flatten(0, -2).mT @ rest.flatten(0, -2)

    def _framed(self, own: Sequence[int], frames: Mapping[int, Subspace]) -> Tensor:
        side, k = (self.left if own is self.lefts else self.right), own[0]
        if k not in frames:
            return side
        return torch.tensordot(side, frames[k].within(self.rows[k]), ([1], [0])).movedim(-1, 1)


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns for a factor's flat axis, apart for each of its widths."""

    starts: tuple[int, ...]
    bases: tuple[Tensor, ...]

    @property
    def width(self) -> int:
        """All columns."""
        return sum(basis.shape[1] for basis in self.bases)

    def _which(self, rows: Tensor) -> int:
        return max(n for n, start in enumerate(self.starts) if start <= int(rows[0]))

    def columns(self, rows: Tensor) -> Tensor:
        """The numbers of the columns of the width that the rows lie in."""
        n = self._which(rows)
        start = sum(basis.shape[1] for basis in self.bases[:n])
        return torch.arange(start, start + self.bases[n].shape[1])

    def within(self, rows: Tensor) -> Tensor:
        """(rows, columns) of their width."""
        n = self._which(rows)
        return self.bases[n][rows - self.starts[n]]

    def lift(self, small: Tensor) -> Tensor:
        """(columns, ...) to (n, ...)."""
        parts = small.split([basis.shape[1] for basis in self.bases])
        return torch.cat([torch.tensordot(basis, part, 1) for basis, part in zip(self.bases, parts, strict=True)])


def target_updates(
    adapter: Adapter, piece: FactorGroup, updates: Sequence[Mapping[str, LowRankUpdate]]
) -> list[TargetUpdate]:
    """Every target of the piece in every task."""
    return [
        _block(adapter, piece, path, task, pairs.get(path))
        for task, pairs in enumerate(updates)
        for path, place in adapter.layout.targets.items()
        if place.views[piece.factors[0]].key in piece.keys[0]
    ]


def _block(adapter: Adapter, piece: FactorGroup, path: str, task: int, pair: LowRankUpdate | None) -> TargetUpdate:
    place = adapter.layout.targets[path]
    network, sizes = place.network, place.sizes
    own = [[m for m in network.factors[f] if m not in network.bonds] for f in piece.factors]
    rows = [_rows(adapter, piece, k, path, task) for k in range(len(own))]
    edges = [bool({*modes} & network.weight_modes) for modes in own]
    lefts, rights = (
        sorted((k for k, modes in enumerate(own) if {*modes} & {*side}), key=lambda k: not edges[k])
        for side in (network.inputs, network.outputs)
    )
    if pair is None:
        return TargetUpdate(path, task, rows, lefts, rights, None, None)
    left = pair.down.detach().double().cpu().reshape(-1, *(sizes[m] for m in network.inputs))
    right = pair.up.detach().double().cpu().mT.reshape(-1, *(sizes[m] for m in network.outputs))
    left, right = (
        side.permute(0, *(1 + modes.index(m) for k in ks for m in own[k])).reshape(-1, *(len(rows[k]) for k in ks))
        for side, modes, ks in ((left, network.inputs, lefts), (right, network.outputs, rights))
    )
    return TargetUpdate(path, task, rows, lefts, rights, left, right)


def _rows(adapter: Adapter, piece: FactorGroup, k: int, path: str, task: int) -> Tensor:
    """The entries of factor k's flat axis, as `piece.gather` makes it, that a target reads for a task."""
    view, stored = adapter.layout.targets[path].views[piece.factors[k]], adapter.layout.params
    shapes = {
        key: [1 if axis in piece.bond_axes[key] else n for axis, n in enumerate(stored[key].shape)] for key in piece.keys[k]
    }
    before = sum(prod(shapes[key]) for key in piece.keys[k][: piece.keys[k].index(view.key)])
    index = torch.arange(prod(shapes[view.key])).reshape(shapes[view.key]) + before
    if view.key in adapter.task_keys:
        index = index.select(adapter.task_keys[view.key], task)
    return read_slice(index, view).flatten()


def leading_subspaces(
    piece: FactorGroup, blocks: Sequence[TargetUpdate], tensors: Sequence[Tensor], rank: int
) -> dict[int, Subspace]:
    """Frames of the two long axes: each side's leading directions, found as the other's frame sees the updates.

    None for an axis of which a target reads a part (widths "max_slice"): its other rows are free, and a frame would mix
    them with those that are read.
    """
    (left, right), frames = (blocks[0].lefts[0], blocks[0].rights[0]), {}
    for k in (left, right, left, right):
        starts = sorted({int(block.rows[k][0]) for block in blocks})  # targets of a width read from its first row on
        spans = list(zip(starts, [*starts[1:], len(tensors[k])], strict=True))
        readers = [[one for one in blocks if start <= int(one.rows[k][0]) < end] for start, end in spans]
        if any(len(one.rows[k]) < end - start for own, (start, end) in zip(readers, spans, strict=True) for one in own):
            continue
        others = {j: frame for j, frame in frames.items() if j != k}
        bases = [
            _leading([one for one in own if one.left is not None], k, start, end - start, rank + OVERSAMPLING, others)
            for own, (start, end) in zip(readers, spans, strict=True)
        ]
        frames[k] = Subspace(tuple(starts), tuple(bases))
    return frames


def _leading(
    blocks: Sequence[TargetUpdate], k: int, start: int, n: int, columns: int, frames: Mapping[int, Subspace]
) -> Tensor:
    """The leading left singular vectors of [X_1 X_2 ...], (n, columns), by subspace iteration; X is never formed."""
    if columns >= n:
        return torch.eye(n, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(n, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for _ in range(ITERATIONS):
        total = torch.zeros_like(basis)
        for block in blocks:
            rows = block.rows[k] - start
            total.index_add_(0, rows, block.gram_times(k, basis[rows], frames))
        basis = torch.linalg.qr(total).Q
    return basis
