"""Groups of factors that are truncated jointly: learned factors joined by bonds, as tensors (n, *bonds) and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import FactorParam
from metalora.methods.method import Method
from metalora.tensornet.topology import Topology, classify_topology, connected_components


@dataclass(frozen=True)
class FactorGroup:
    """Factors that are truncated jointly.

    Attributes:
        factors: The names of the factors in the method.
        factor_bonds: The bonds of every factor that are ranks of learned factors alone.
        keys: The keys under which every factor is stored: several if targets have unequal widths.
        bond_axes: Key -> the axes of the bonds in the stored factor.
    """

    factors: tuple[str, ...]
    factor_bonds: tuple[tuple[str, ...], ...]
    keys: tuple[tuple[str, ...], ...]
    bond_axes: Mapping[str, tuple[int, ...]]

    @property
    def topology(self) -> Topology | None:
        """Chain, tree, ring or shared bond."""
        return classify_topology(self.factor_bonds)

    def __str__(self) -> str:
        return f"{self.keys[0][0]!r} to {self.keys[-1][0]!r}"

    def gather(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Flatten the factors of the group.

        Args:
            tensors: Key -> a tensor of the stored factor's shape: the factor, its gradient, a moment.

        Returns:
            (n, *bonds) for every factor; those of several widths are concatenated along n.
        """
        return [torch.cat([self._flatten(key, tensors[key]) for key in keys]) for keys in self.keys]

    def scatter(self, flat_factors: Sequence[Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `gather`.

        Args:
            flat_factors: (n, *bonds) for every factor; the bonds may have other sizes than before.
            like: Key -> a tensor with the open axes of the stored factor.

        Returns:
            Key -> the tensor with its axes in the order in which the factor is stored.
        """
        scattered: dict[str, Tensor] = {}
        for keys, flat_factor in zip(self.keys, flat_factors, strict=True):
            start = 0
            for key in keys:  # the widths lie one after another on the flat axis
                open_sizes = [like[key].shape[axis] for axis in self._open_axes(key, like[key].ndim)]
                flat = flat_factor.narrow(0, start, prod(open_sizes))  # (n of this key, *bonds)
                start += prod(open_sizes)
                value = flat.reshape(*open_sizes, *flat.shape[1:])  # (*open axes, *bonds)
                order = self._flattening_order(key, value.ndim)
                # the inverse of the permutation in `_flatten`
                scattered[key] = value.permute([order.index(axis) for axis in range(value.ndim)])
        return scattered

    def _flatten(self, key: str, value: Tensor) -> Tensor:
        """A stored factor as (n, *bonds), whatever the order in which its modes are declared."""
        bond_sizes = [value.shape[axis] for axis in self.bond_axes[key]]
        return value.permute(self._flattening_order(key, value.ndim)).reshape(-1, *bond_sizes)  # (n, *bonds)

    def _open_axes(self, key: str, ndim: int) -> list[int]:
        return [axis for axis in range(ndim) if axis not in self.bond_axes[key]]

    def _flattening_order(self, key: str, ndim: int) -> list[int]:
        return [*self._open_axes(key, ndim), *self.bond_axes[key]]


def factor_groups(adapter: Adapter) -> list[FactorGroup]:
    """Find the groups of learned factors that are joined by bonds which no generated or frozen factor has.

    Args:
        adapter: An attached adapter.

    Returns:
        One group for each network: for each owner of factors (a target, a layer, the whole model), each connected part.

    Raises:
        ValueError: The factors are not a chain, tree, ring or CP; no two learned factors are joined; or factors of one
            group are shared by unequal sets of targets.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, attach
        >>> adapter = attach(nn.Sequential(nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets=("0",)))
        >>> [group] = factor_groups(adapter)
        >>> group.factors, group.factor_bonds, group.topology
        (('A', 'B'), (('r',), ('r',)), 'chain')
        >>> [tuple(factor.shape) for factor in group.gather(adapter.factors)]
        [(8, 2), (4, 2)]
    """
    method = adapter.method
    learned_bonds = _learned_bonds(adapter)
    factors = list(learned_bonds)
    components = connected_components(list(learned_bonds.values()))
    # a single factor has no bond to truncate
    parts = [tuple(factors[number] for number in component) for component in components if len(component) > 1]
    _check_parts(method, parts, learned_bonds)
    params = adapter.layout.params
    # a method with a copy per target has as many groups as targets, one with shared factors has one
    owners = dict.fromkeys(param.owner for part in parts for param in params.values() if param.factor in part)
    groups: list[FactorGroup] = []
    for owner in owners:
        for part in parts:
            if any(param.owner == owner and param.factor in part for param in params.values()):
                groups.append(_factor_group(part, learned_bonds, params, owner))
    return groups


def _learned_bonds(adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """Learned factor -> its bonds that are ranks and that no generated or frozen factor has."""
    network, rank_bonds = adapter.method.network, adapter.method.rank_bonds
    fixed_factors = {*adapter.resolved.generated, *adapter.resolved.frozen}
    # a bond of a generated or frozen factor cannot be truncated: that factor cannot follow
    fixed_modes = {mode for factor in fixed_factors for mode in network.factors[factor]}
    return {
        factor: tuple(mode for mode in modes if mode in rank_bonds and mode not in fixed_modes)
        for factor, modes in network.factors.items()
        if factor not in fixed_factors
    }


def _check_parts(
    method: Method, parts: Sequence[tuple[str, ...]], learned_bonds: Mapping[str, tuple[str, ...]]
) -> None:
    topologies = [classify_topology([learned_bonds[factor] for factor in part]) for part in parts]
    if method.uses_experts or method.mixes_slices or None in topologies:
        raise ValueError(
            f"sweep: the factors of {method.name!r} are not a chain, tree, ring or CP, so they have no sweep"
        )
    if not parts:
        raise ValueError(f"sweep: {method.name!r} has no two neighbouring factors that are learned")
    # a truncation changes the basis of a bond, which then has to be the same for all who read either factor
    if any(len({method.replication_of(factor) for factor in part}) > 1 for part in parts):
        raise ValueError(f"sweep: the factors of {method.name!r} are shared by unequal sets of targets")


def _factor_group(
    factors: Sequence[str], learned_bonds: Mapping[str, tuple[str, ...]], params: Mapping[str, FactorParam], owner: str
) -> FactorGroup:
    """The group of these factors that belongs to an owner."""
    keys_of_factors: list[tuple[str, ...]] = []
    bond_axes: dict[str, tuple[int, ...]] = {}
    for factor in factors:
        keys = tuple(key for key, param in params.items() if param.factor == factor and param.owner == owner)
        keys_of_factors.append(keys)
        for key in keys:
            bond_axes[key] = tuple(params[key].modes.index(bond) for bond in learned_bonds[factor])
    factor_bonds = tuple(learned_bonds[factor] for factor in factors)
    return FactorGroup(tuple(factors), factor_bonds, tuple(keys_of_factors), bond_axes)
