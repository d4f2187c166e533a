"""What of an adapter is truncated together: learned factors joined by bonds, as tensors (n, *bonds) and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import FactorParam
from metalora.tensornet.topology import classify_topology, connected_components


@dataclass(frozen=True)
class FactorGroup:
    """Factors that are truncated together: their names, the bonds among them, their keys (by width), their wiring."""

    factors: tuple[str, ...]
    terms: tuple[tuple[str, ...], ...]
    keys: tuple[tuple[str, ...], ...]
    axes: Mapping[str, tuple[int, ...]]
    """of every key: where the stored factor has the bonds"""

    @property
    def kind(self) -> str | None:
        """chain, tree, ring or shared bond."""
        return classify_topology(self.terms)

    def __str__(self) -> str:
        return f"{self.keys[0][0]!r} to {self.keys[-1][0]!r}"

    def gather(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Every factor as (everything else, *bonds), those of several widths one after another."""
        return [torch.cat([self._flat(key, tensors[key]) for key in keys]) for keys in self.keys]

    def scatter(self, gathered: Sequence[Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors back as factors: the widths apart, the axes where they were."""
        found = {}
        for keys, tensor in zip(self.keys, gathered, strict=True):
            own = {key: [n for axis, n in enumerate(like[key].shape) if axis not in self.axes[key]] for key in keys}
            for key, part in zip(keys, tensor.split([prod(own[key]) for key in keys]), strict=True):
                value, order = part.reshape(*own[key], *part.shape[1:]), self._order(key, like[key].ndim)
                found[key] = value.permute([order.index(axis) for axis in range(value.ndim)])
        return found

    def _flat(self, key: str, value: Tensor) -> Tensor:
        bonds = [value.shape[axis] for axis in self.axes[key]]
        return value.permute(self._order(key, value.ndim)).reshape(-1, *bonds)

    def _order(self, key: str, ndim: int) -> list[int]:
        return [*(axis for axis in range(ndim) if axis not in self.axes[key]), *self.axes[key]]


def factor_groups(adapter: Adapter) -> list[FactorGroup]:
    """Learned factors with the bonds that no generated factor has; one set for each network.

    ValueError: another wiring than `wiring` knows, and factors that are all apart.
    """
    method, stored = adapter.method, adapter.layout.params
    made = {*adapter.resolved.generated, *adapter.resolved.frozen}
    fixed = {mode for factor in made for mode in method.network.factors[factor]}
    learned = [factor for factor in method.network.factors if factor not in made]
    inside = {
        factor: tuple(m for m in method.network.factors[factor] if m in method.rank_bonds and m not in fixed)
        for factor in learned
    }
    groups = [part for part in connected_components(list(inside.values())) if len(part) > 1]
    groups = [tuple(learned[k] for k in part) for part in groups]
    if (
        method.uses_experts
        or method.mixes_slices
        or any(classify_topology([inside[factor] for factor in group]) is None for group in groups)
    ):
        raise ValueError(f"sweep: the factors of {method.name!r} are no chain, tree, ring or CP, so they have no sweep")
    if not groups:
        raise ValueError(f"sweep: {method.name!r} has no two neighbouring factors that are learned")
    if any(len({method.replication_of(factor) for factor in group}) > 1 for group in groups):
        raise ValueError(f"sweep: the factors of {method.name!r} are shared by unequal sets of targets")
    owners = {group: dict.fromkeys(one.owner for one in stored.values() if one.factor in group) for group in groups}
    every = dict.fromkeys(owner for own in owners.values() for owner in own)
    return [_piece(group, inside, stored, owner) for owner in every for group in groups if owner in owners[group]]


def _piece(
    group: Sequence[str], inside: Mapping[str, tuple[str, ...]], stored: Mapping[str, FactorParam], owner: str
) -> FactorGroup:
    keys = tuple(
        tuple(key for key, one in stored.items() if one.factor == factor and one.owner == owner) for factor in group
    )
    axes = {
        key: tuple(stored[key].modes.index(bond) for bond in inside[factor])
        for factor, own in zip(group, keys, strict=True)
        for key in own
    }
    return FactorGroup(tuple(group), tuple(inside[factor] for factor in group), keys, axes)
