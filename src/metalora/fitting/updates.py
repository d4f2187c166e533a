"""Low-rank updates of weights as the factors of a network see them, and subspaces that many of them share."""

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
from metalora.tensornet.gram import contract, open_label
from metalora.tensornet.topology import FactorBonds

OVERSAMPLING = 16  # directions of a subspace in addition to the rank
SUBSPACE_ITERATIONS = 5


class LowRankUpdate(NamedTuple):
    """A low-rank update of a weight, Delta W = up · down; a scale is included in the two.

    Attributes:
        down: (rank, in) or (rank, in, kh, kw).
        up: (out, rank).

    Example:
        >>> update = LowRankUpdate(down=torch.ones(2, 8), up=torch.ones(4, 2))
        >>> (update.up @ update.down).shape
        torch.Size([4, 8])
    """

    down: Tensor
    up: Tensor


class SplitUpdate(NamedTuple):
    """A low-rank update with one axis for every factor of a group.

    Attributes:
        left: (rank, n of every factor in `input_factors` of the `TargetUpdate`).
        right: (rank, n of every factor in `output_factors`).

    Example:
        >>> update = SplitUpdate(left=torch.ones(2, 8), right=torch.ones(2, 12, 64))  # out as (head, hdim)
        >>> torch.tensordot(update.left, update.right, ([0], [0])).shape
        torch.Size([8, 12, 64])
    """

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class TargetUpdate:
    """The update of a target and task as the factors of a group see it.

    Attributes:
        path: The target.
        task: The number of the task.
        indices: For every factor, the entries (n,) of its flattened open axis that the target reads.
        input_factors: The numbers of the factors with modes of the input side, that with the weight's own axes first.
        output_factors: The same of the output side.
        update: The update, or None if it is zero.
    """

    path: str
    task: int
    indices: list[Tensor]
    input_factors: list[int]
    output_factors: list[int]
    update: SplitUpdate | None

    @property
    def square(self) -> float:
        """|Delta W|_F^2, by Gram matrices (rank, rank)."""
        if self.update is None:
            return 0.0
        left, right = self.update.left.flatten(1), self.update.right.flatten(1)  # (rank, in), (rank, out)
        return max(float(((left @ left.mT) * (right @ right.mT)).sum()), 0.0)

    def inner_product(self, factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> float:
        """Compute <Delta W, T'> with a network.

        Args:
            factor_bonds: The bonds of every factor.
            tensors: The factors of T' at the entries that the target reads, (n, *bonds) each.
        """
        if self.update is None:
            return 0.0
        # one contraction of the update and the network: neither is ever a dense (in, out)
        operands: list[tuple[Tensor, list[str]]] = [
            (self.update.left, self._labels(self.input_factors)),
            (self.update.right, self._labels(self.output_factors)),
        ]
        for number, (bonds, tensor) in enumerate(zip(factor_bonds, tensors, strict=True)):
            operands.append((tensor, [open_label(number), *bonds]))
        return float(contract(operands, []))

    def projected(self, update: SplitUpdate, subspaces: Mapping[int, Subspace]) -> Tensor:
        """Project the update, which is not zero, on subspaces.

        Args:
            update: The update.
            subspaces: Factor -> the subspace of its flattened open axis; other axes stay as they are.

        Returns:
            (n_1, n_2, ...), an axis for every factor in order, the columns of the subspace in place of n.
        """
        left = self._project_side(update.left, self.input_factors, subspaces)
        right = self._project_side(update.right, self.output_factors, subspaces)
        dense: Tensor = torch.tensordot(left, right, ([0], [0]))  # (input factors, output factors), short axes
        factors = [*self.input_factors, *self.output_factors]
        # the axes are those of the sides; the network wants its factors in order
        return dense.permute([factors.index(number) for number in sorted(factors)])

    def gram_times(self, update: SplitUpdate, factor: int, basis: Tensor, subspaces: Mapping[int, Subspace]) -> Tensor:
        """Multiply by a Gram matrix, X X' B, without forming it.

        Args:
            update: The update, as the matrix X (n of the factor, everything else).
            factor: A factor that has the longest axis of its side.
            basis: B (n, columns).
            subspaces: Factor -> the subspace on which the other side is projected first.

        Returns:
            (n, columns).
        """
        if factor in self.input_factors:
            side, other_side = update.left, self._project_side(update.right, self.output_factors, subspaces)
        else:
            side, other_side = update.right, self._project_side(update.left, self.input_factors, subspaces)
        side = side.movedim(1, -1)  # (rank, other factors of this side, n)
        other_side = other_side.flatten(1)  # (rank, everything else)
        product: Tensor = torch.tensordot(other_side @ other_side.mT, side @ basis, 1)  # (rank, other factors, columns)
        return side.flatten(0, -2).mT @ product.flatten(0, -2)  # (n, columns)

    def _labels(self, factors: Sequence[int]) -> list[str]:
        return ["#rank", *(open_label(number) for number in factors)]

    def _project_side(self, side: Tensor, factors: Sequence[int], subspaces: Mapping[int, Subspace]) -> Tensor:
        """Project the first axis after the rank, the longest one: (rank, n, ...) -> (rank, columns, ...).

        Without a subspace for it, the side stays as it is.
        """
        longest = factors[0]
        if longest not in subspaces:
            return side
        basis = subspaces[longest].basis_at(self.indices[longest])
        projected: Tensor = torch.tensordot(side, basis, ([1], [0]))  # (rank, other factors, columns)
        return projected.movedim(-1, 1)


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns for the flattened open axis of a factor, separate ones for each of its widths.

    Attributes:
        starts: The first entry of every width on the axis.
        bases: (entries of the width, columns) for every width.

    Example:
        >>> subspace = Subspace(starts=(0, 4), bases=(torch.eye(4)[:, :2], torch.eye(6)[:, :3]))
        >>> subspace.num_columns, subspace.columns_at(torch.arange(4, 10)), subspace.expand(torch.ones(5, 7)).shape
        (5, tensor([2, 3, 4]), torch.Size([10, 7]))
    """

    starts: tuple[int, ...]
    bases: tuple[Tensor, ...]

    @property
    def num_columns(self) -> int:
        """The number of columns of all widths."""
        return sum(basis.shape[1] for basis in self.bases)

    def columns_at(self, entries: Tensor) -> Tensor:
        """Return the numbers of the columns that belong to the width of these entries.

        Args:
            entries: (n,), entries of one width.
        """
        width = self._width_of(entries)
        start = sum(basis.shape[1] for basis in self.bases[:width])
        return torch.arange(start, start + self.bases[width].shape[1])

    def basis_at(self, entries: Tensor) -> Tensor:
        """Return the rows of the columns at these entries: (n,) of one width -> (n, columns of the width)."""
        width = self._width_of(entries)
        return self.bases[width][entries - self.starts[width]]

    def expand(self, coefficients: Tensor) -> Tensor:
        """Multiply by the columns: (all columns, ...) -> (all entries, ...)."""
        parts = torch.split(coefficients, [basis.shape[1] for basis in self.bases])  # (columns of a width, ...) each
        return torch.cat([torch.tensordot(basis, part, 1) for basis, part in zip(self.bases, parts, strict=True)])

    def _width_of(self, entries: Tensor) -> int:
        """The number of the width that all entries (n,) lie in."""
        # all entries belong to one width, so the first one decides
        return max(number for number, start in enumerate(self.starts) if start <= int(entries[0]))


def target_updates(
    adapter: Adapter, group: FactorGroup, updates: Sequence[Mapping[str, LowRankUpdate]]
) -> list[TargetUpdate]:
    """Split the updates of all targets that read a group, in every task.

    Args:
        adapter: The adapter.
        group: A group of all factors of one network.
        updates: For every task, path -> update; a target that is missing has a zero update.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> from metalora.ranks.groups import factor_groups
        >>> adapter = attach(nn.Sequential(nn.Linear(64, 48)), AdapterConfig("lora", rank=2, targets=("0",)))
        >>> update = LowRankUpdate(down=torch.ones(3, 64), up=torch.ones(48, 3))
        >>> [target] = target_updates(adapter, factor_groups(adapter)[0], [{"0": update}])
        >>> target.input_factors, target.output_factors, target.update.left.shape
        ([0], [1], torch.Size([3, 64]))
    """
    first_factor, first_keys = group.factors[0], group.keys[0]
    paths = [path for path, layout in adapter.layout.targets.items() if layout.views[first_factor].key in first_keys]
    return [
        _target_update(adapter, group, path, task, by_path.get(path))
        for task, by_path in enumerate(updates)
        for path in paths
    ]


def _target_update(
    adapter: Adapter, group: FactorGroup, path: str, task: int, update: LowRankUpdate | None
) -> TargetUpdate:
    network = adapter.layout.targets[path].network
    open_modes = [[mode for mode in network.factors[factor] if mode not in network.bonds] for factor in group.factors]
    indices = [_entries_of_target(adapter, group, number, path, task) for number in range(len(group.factors))]
    input_factors = _factors_of_side(open_modes, network.inputs, network.weight_modes)
    output_factors = _factors_of_side(open_modes, network.outputs, network.weight_modes)
    split = None
    if update is not None:
        sizes = adapter.layout.targets[path].sizes
        down = update.down.detach().double().cpu()
        up = update.up.detach().double().cpu().mT  # (rank, out)
        left = down.reshape(-1, *(sizes[mode] for mode in network.inputs))  # (rank, *modes of the input side)
        right = up.reshape(-1, *(sizes[mode] for mode in network.outputs))  # (rank, *modes of the output side)
        split = SplitUpdate(
            _axis_per_factor(left, network.inputs, open_modes, input_factors, indices),
            _axis_per_factor(right, network.outputs, open_modes, output_factors, indices),
        )
    return TargetUpdate(path, task, indices, input_factors, output_factors, split)


def _factors_of_side(
    open_modes: Sequence[Sequence[str]], side_modes: Sequence[str], weight_modes: frozenset[str]
) -> list[int]:
    """The numbers of the factors with a mode of one side, those with axes of the weight (the longest) first."""
    factors = [number for number, modes in enumerate(open_modes) if {*modes} & {*side_modes}]
    # False sorts before True: factors with axes of the weight first, and otherwise in their order
    return sorted(factors, key=lambda number: not {*open_modes[number]} & weight_modes)


def _axis_per_factor(
    side: Tensor,
    side_modes: Sequence[str],
    open_modes: Sequence[Sequence[str]],
    factors: Sequence[int],
    indices: Sequence[Tensor],
) -> Tensor:
    """(rank, *modes of the side) -> (rank, n of every factor)."""
    axes = [1 + list(side_modes).index(mode) for number in factors for mode in open_modes[number]]
    return side.permute(0, *axes).reshape(-1, *(len(indices[number]) for number in factors))


def _entries_of_target(adapter: Adapter, group: FactorGroup, number: int, path: str, task: int) -> Tensor:
    """The entries (n,) of a factor's flattened open axis (`group.gather`) that a target reads for a task."""
    view = adapter.layout.targets[path].views[group.factors[number]]
    first_entry = 0
    for key in group.keys[number]:
        shape = adapter.layout.params[key].shape
        open_shape = [1 if axis in group.bond_axes[key] else size for axis, size in enumerate(shape)]  # bonds of one
        if key == view.key:
            break
        first_entry += prod(open_shape)
    # every value is the number of its entry, so reading the slice of the target gives its entries
    entries = torch.arange(prod(open_shape)).reshape(open_shape) + first_entry
    if view.key in adapter.task_keys:
        entries = entries.select(adapter.task_keys[view.key], task)
    return read_slice(entries, view).flatten()


def leading_subspaces(updates: Sequence[TargetUpdate], sizes: Sequence[int], rank: int) -> dict[int, Subspace]:
    """Find subspaces of the two long axes: the leading directions of updates that are projected on the other subspace.

    An axis of which a target reads only a part of a width (widths "max_slice") has none: its other entries are free,
    and columns would mix them with those that are read.

    Args:
        updates: The updates of all targets of a group.
        sizes: The length of every factor's flattened open axis.
        rank: The number of directions, less the oversampling.

    Returns:
        The number of a factor -> the subspace of its axis.

    Example:
        >>> update = SplitUpdate(left=torch.ones(3, 64).double(), right=torch.ones(3, 48).double())
        >>> target = TargetUpdate("0", 0, [torch.arange(64), torch.arange(48)], [0], [1], update)
        >>> subspaces = leading_subspaces([target], sizes=[64, 48], rank=2)
        >>> {factor: subspace.bases[0].shape for factor, subspace in subspaces.items()}
        {0: torch.Size([64, 18]), 1: torch.Size([48, 18])}
    """
    left, right = updates[0].input_factors[0], updates[0].output_factors[0]
    subspaces: dict[int, Subspace] = {}
    # twice, since the first subspace of the left side is found without one of the right side
    for factor in (left, right, left, right):
        # the targets of one width read from its first entry on
        starts = sorted({int(update.indices[factor][0]) for update in updates})
        bases: list[Tensor] = []
        for start, end in zip(starts, [*starts[1:], sizes[factor]], strict=True):
            readers = [update for update in updates if start <= int(update.indices[factor][0]) < end]
            if any(len(reader.indices[factor]) < end - start for reader in readers):
                break
            other_subspaces = {number: subspace for number, subspace in subspaces.items() if number != factor}
            bases.append(_leading_directions(readers, factor, start, end - start, rank + OVERSAMPLING, other_subspaces))
        if len(bases) == len(starts):
            subspaces[factor] = Subspace(tuple(starts), tuple(bases))
    return subspaces


def _leading_directions(
    updates: Sequence[TargetUpdate],
    factor: int,
    start: int,
    size: int,
    num_columns: int,
    subspaces: Mapping[int, Subspace],
) -> Tensor:
    """The leading left singular vectors of [X_1 X_2 ...], (size, columns), by subspace iteration; X is never formed."""
    if num_columns >= size:
        return torch.eye(size, dtype=torch.float64)  # all directions, exactly
    generator = torch.Generator().manual_seed(0)  # equal updates give equal factors
    basis: Tensor = torch.linalg.qr(torch.randn(size, num_columns, generator=generator, dtype=torch.float64)).Q
    for _ in range(SUBSPACE_ITERATIONS):
        total = torch.zeros_like(basis)
        for target_update in updates:
            if target_update.update is not None:
                entries = target_update.indices[factor] - start
                product = target_update.gram_times(target_update.update, factor, basis[entries], subspaces)
                # targets read unlike parts of the axis, and several may read the same
                total.index_add_(0, entries, product)
        basis = torch.linalg.qr(total).Q  # (size, columns)
    return basis
