"""Two-site DMRG while an adapter trains: the bonds of its tensor train are trained one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalora._util.processes import of_process_0
from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import build_layout
from metalora.adapters.resize import resize
from metalora.config import TwoSiteConfig
from metalora.methods.resolve import resolve
from metalora.ranks.groups import FactorGroup, factor_groups
from metalora.ranks.sweep import rank_sizes, ready_adapter
from metalora.tensornet.topology import bond_sizes
from metalora.tensornet.truncation.train import TrainOrder
from metalora.tensornet.truncation.two_site import merge_pair, split_pair


def bond_visits(num_bonds: int, sweeps: int) -> list[int]:
    """List the bonds in the order in which they are trained: to the right and back, `sweeps` times.

    Example:
        >>> bond_visits(3, sweeps=2)
        [0, 1, 2, 1, 0, 1, 2, 1, 0]
    """
    there_and_back = [*range(num_bonds), *reversed(range(num_bonds))]
    return [bond for bond, _ in groupby(there_and_back * sweeps)]  # not twice in a row at the ends


class TwoSite:
    """Trains the merged tensor of two neighbouring cores, splits it, and goes on to the next bond.

    A visit of a bond: the two cores become one tensor G_k G_{k+1}, the optimiser trains it alone for some steps, and
    its singular values give the new rank, which may be larger than before. The merged tensor is stored as one of the
    two cores, the other being an identity, so that the adapter stays a valid one at every step. All other learned
    factors are frozen and orthonormal towards the pair; a head and a mapping net are trained on. After the last visit
    all factors are trained together.

    Args:
        model: A model with an adapter whose learned factors are one tensor train.
        config: When the visits begin, how many there are, and where a bond is cut.
        steps: The number of optimiser steps of the run.

    Attributes:
        visits: The bonds, from 0, in the order in which they are trained.

    Raises:
        ValueError: The model has no such adapter, or the visits do not fit into the steps.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 6))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> controller = TwoSite(model, TwoSiteConfig(bond_steps=5), steps=10)
        >>> [tuple(factor.shape) for factor in adapter.factors.values()]  # the merged tensor, and an identity
        [(8, 6), (6, 6)]
        >>> controller.after(5, None)
        >>> adapter.config.rank
        {'r': 2}
    """

    def __init__(self, model: nn.Module, config: TwoSiteConfig, steps: int):
        self.adapter, self.config = ready_adapter(model, "two-site"), config
        self.group = _only_chain(self.adapter)
        self.order = TrainOrder.of_chain(self.group.factor_bonds)
        self.visits = bond_visits(len(self.order.bonds), config.sweeps)
        _check(config, len(self.visits), steps)
        sizes = bond_sizes(self.group.factor_bonds, self.group.gather(self.adapter.factors))
        self.largest_ranks = {bond: config.rank or size for bond, size in sizes.items()}
        _check_merged_sizes(self.adapter, self.group, self.order, self.largest_ranks)
        self.trained_keys: list[str] | None = None
        if config.start == 0:
            self.after(0, None)

    @torch.no_grad()
    def after(self, step: int, optimizer: Optimizer | None) -> None:
        """Split the pair and merge the next one, if it is time.

        Args:
            step: The number of optimiser steps so far.
            optimizer: The optimiser, whose moments of the factors are dropped, as by a sweep.
        """
        visit, begun = divmod(step - self.config.start, self.config.bond_steps)
        if begun or not 0 <= visit <= len(self.visits):
            return
        cores, center = of_process_0(self._next_cores(visit))
        keys = self.group.keys[self.order.factors[center]]
        self._write(cores, keys, optimizer)
        self._train_only(list(keys) if visit < len(self.visits) else None)

    def penalty(self) -> None:
        """Nothing is added to the loss."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores in addition to the factors: the keys of the core that is trained."""
        return {"trained_keys": self.trained_keys}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._train_only(state["trained_keys"])

    def _next_cores(self, visit: int) -> tuple[list[Tensor], int]:
        """The cores after a split of the last pair and a merge of the next, and the number of the one with the norm."""
        factors = [factor.double() for factor in self.group.gather(self.adapter.factors)]
        cores = self.order.cores(self.group.factor_bonds, factors)
        if visit > 0:
            bond = self.visits[visit - 1]
            largest = self.largest_ranks[self.order.bonds[bond]]
            cores, _ = split_pair(cores, bond, largest, self.config.tolerance, self.config.svd)
            if visit == len(self.visits):
                return cores, bond + 1
        return merge_pair(cores, self.visits[visit])

    def _write(self, cores: Sequence[Tensor], center_keys: Sequence[str], optimizer: Optimizer | None) -> None:
        """Give the adapter the cores and their ranks; the keys are those of the core with the norm."""
        adapter, scale_before = self.adapter, self.adapter.scale
        factors = self.order.factors_of(self.group.factor_bonds, cores)
        ranks = {**rank_sizes(adapter), **bond_sizes(self.group.factor_bonds, factors)}
        scattered = self.group.scatter(factors, adapter.factors)
        resize(adapter, replace(adapter.config, rank=ranks), scattered)
        for key in center_keys:  # alpha / r changes with the rank, and Delta W stays
            adapter.factors[key].mul_(scale_before / adapter.scale)
        if optimizer is not None:
            for key in scattered:
                optimizer.state.pop(adapter.learned[key], None)

    def _train_only(self, keys: list[str] | None) -> None:
        """Freeze all learned factors but these; None: train all."""
        self.trained_keys = keys
        for key, parameter in self.adapter.learned.items():
            parameter.requires_grad_(keys is None or key in keys)


def _only_chain(adapter: Adapter) -> FactorGroup:
    groups = factor_groups(adapter)
    if len(groups) > 1 or groups[0].topology != "chain":
        raise ValueError(
            f"two-site: the learned factors of {adapter.method.name!r} are {len(groups)} times a "
            f"{groups[0].topology}, expected one tensor train, as of 'metatt-4d'"
        )
    return groups[0]


def _check_merged_sizes(
    adapter: Adapter, group: FactorGroup, order: TrainOrder, largest_ranks: Mapping[str, int]
) -> None:
    """Raise ValueError if a merged bond can become larger than the layout allows, before anything is trained."""
    cores = order.cores(group.factor_bonds, group.gather(adapter.factors))
    open_sizes = [core.shape[1] for core in cores]
    ranks = [1, *(largest_ranks[bond] for bond in order.bonds), 1]
    for number, bond in enumerate(order.bonds):
        size = min(ranks[number] * open_sizes[number], open_sizes[number + 1] * ranks[number + 2])
        try:
            config = replace(adapter.config, rank={**rank_sizes(adapter), bond: size})
            build_layout(list(adapter.targets.values()), resolve(config))
        except ValueError as problem:
            raise ValueError(f"two-site: merged, bond {bond!r} needs the size {size}: {problem}") from None


def _check(config: TwoSiteConfig, num_visits: int, steps: int) -> None:
    last = config.start + num_visits * config.bond_steps
    if last > steps:
        raise ValueError(
            f"two-site: {num_visits} visits of {config.bond_steps} steps end at step {last}, and the run has {steps}; "
            "give it more steps, or lower sweeps or bond_steps"
        )
