"""Rank truncation of any network that is a chain, a tree (Tucker), a ring or has one shared bond (CP)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from metalora.tensornet.gram import distance, norm, qr_compress, qr_expand
from metalora.tensornet.topology import (
    FactorBonds,
    Topology,
    bond_sizes,
    classify_topology,
    edges,
    feasible_ranks,
)
from metalora.tensornet.truncation.columns import truncate_columns
from metalora.tensornet.truncation.gauge import Gauge, columns_in_gauge, ring_in_gauge, tree_in_gauge
from metalora.tensornet.truncation.importance import truncate_columns_by_importance, truncate_tree_by_importance
from metalora.tensornet.truncation.metatt_sweep import metatt_algorithm_1
from metalora.tensornet.truncation.ring import truncate_ring
from metalora.tensornet.truncation.target import TruncationTarget
from metalora.tensornet.truncation.train import TrainOrder
from metalora.tensornet.truncation.tree import tree_singular_values, truncate_tree

Mode = Literal["round", "paper"]
TruncationResult = tuple[list[Tensor], dict[str, float]]
TruncationAlgorithm = Callable[[FactorBonds, Sequence[Tensor], TruncationTarget], TruncationResult]
BondGradients = Mapping[str, Tensor]
ImportanceAlgorithm = Callable[[FactorBonds, Sequence[Tensor], TruncationTarget, BondGradients], TruncationResult]
GaugeAlgorithm = Callable[[FactorBonds, Sequence[Tensor], Gauge], list[Tensor]]

TRUNCATIONS: dict[Topology, TruncationAlgorithm] = {
    "chain": truncate_tree,
    "tree": truncate_tree,
    "ring": truncate_ring,
    "shared bond": truncate_columns,
}
# not of a ring: it has no singular values of its own, and the fit that its truncation ends with undoes a choice
BY_IMPORTANCE: dict[Topology, ImportanceAlgorithm] = {
    "chain": truncate_tree_by_importance,
    "tree": truncate_tree_by_importance,
    "shared bond": truncate_columns_by_importance,
}
GAUGES: dict[Topology, GaugeAlgorithm] = {
    "chain": tree_in_gauge,
    "tree": tree_in_gauge,
    "ring": ring_in_gauge,
    "shared bond": columns_in_gauge,
}


@dataclass(frozen=True)
class TruncatedNetwork:
    """The result of a truncation.

    Attributes:
        tensors: The factors, (n, *bonds) each.
        ranks: Bond -> its size.
        discarded: Bond -> the norm that it discarded.
        error: |T - T'|_F / |T|_F, measured by Gram matrices: a value below 1e-8 is rounding.
    """

    tensors: list[Tensor]
    ranks: dict[str, int]
    discarded: dict[str, float]
    error: float

    @property
    def bound(self) -> float:
        """The root of the sum of the discarded squares: |T - T'|_F is at most this, except in mode "paper"."""
        return sqrt(sum(value**2 for value in self.discarded.values()))


def truncate(
    factor_bonds: FactorBonds,
    tensors: Sequence[Tensor],
    *,
    ranks: Mapping[str, int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
    gradients: BondGradients | None = None,
) -> TruncatedNetwork:
    """Truncate a network to ranks, to a relative error or to a number of parameters.

    The topology of the network chooses the algorithm: chains and trees `truncate_tree`, rings `truncate_ring`, one
    shared bond `truncate_columns`. Everything is computed in float64. Equal input gives equal output: the largest entry
    of every singular vector, or column, is positive.

    Args:
        factor_bonds: The bonds of every factor, in the order of its axes.
        tensors: The factors, (n, *bonds) each.
        ranks: Bond -> rank, lowered to what is feasible; bonds that it does not name keep theirs, and all do if None.
        tolerance: |T - T'|_F <= tolerance |T|_F.
        budget: The largest number of parameters: the relatively largest singular values of all bonds stay.
        mode: "paper": MetaTT's Algorithm 1 as printed, for chains only.
        gauge: Where the norm of the tensor is in the result: in the last factor ("left"), in the first ("right"),
            shared by all ("balanced"); see `gauge`.
        gradients: Bond -> gradients of the loss, (batch, bond, bond) (`importance.bond_gradients`): what matters most
            to the loss stays instead of what is largest. A budget goes to the highest scores of all bonds.

    Returns:
        The truncated factors in the dtype of the old ones, with the measured error.

    Raises:
        ValueError: A topology that is none of the four, a zero or not finite network, ranks that grow, a budget below
            the number of parameters at rank one, more than one of ranks, tolerance and budget, mode "paper" for another
            topology than a chain, gradients with a ring, with mode "paper", or with a tolerance and one shared bond.

    Example:
        >>> import torch
        >>> left, right = torch.ones(6, 2), torch.ones(4, 2)  # 6 x 4 of ones times two: rank one
        >>> result = truncate([["r"], ["r"]], [left, right], ranks={"r": 1})
        >>> result.ranks, [tuple(tensor.shape) for tensor in result.tensors], result.error < 1e-7
        ({'r': 1}, [(6, 1), (4, 1)], True)
    """
    topology = classify_topology(factor_bonds)
    if topology is None:
        raise ValueError(
            f"bonds {list(map(list, factor_bonds))} are not a chain, a tree, a ring or one bond shared by all"
        )
    if (ranks is not None) + (tolerance > 0) + (budget is not None) > 1:
        raise ValueError("a network is truncated to ranks, to a tolerance or to a budget: give one of them")
    _check_mode(topology, mode, by_importance=gradients is not None)
    reference = [tensor.detach().double() for tensor in tensors]  # Gram matrices square the condition number
    wanted_ranks = {**bond_sizes(factor_bonds, tensors), **(ranks or {})}
    _check(topology, factor_bonds, reference, wanted_ranks)  # before any decomposition: NaN would make it fail
    if topology == "chain":
        factors, discarded = _truncate_chain(
            factor_bonds, reference, wanted_ranks, tolerance, budget, mode, gauge, gradients
        )
    else:
        target = _target(factor_bonds, reference, wanted_ranks, tolerance, budget)
        factors, discarded = _truncate_network(topology, factor_bonds, reference, target, gauge, gradients)
    result = [factor.to(tensor.dtype) for factor, tensor in zip(factors, tensors, strict=True)]
    # measured on the rounded result, so that the error of bfloat16 is part of it
    error = distance(factor_bonds, reference, [tensor.double() for tensor in result])
    return TruncatedNetwork(result, bond_sizes(factor_bonds, result), discarded, error / norm(factor_bonds, reference))


def _target(
    factor_bonds: FactorBonds,
    tensors: Sequence[Tensor],
    ranks: Mapping[str, int],
    tolerance: float,
    budget: int | None,
) -> TruncationTarget:
    """The target, with a tolerance divided among the bonds: each discards at most tolerance |T| / sqrt(bonds)."""
    open_sizes = tuple(len(tensor) for tensor in tensors)
    num_bonds = max(len(edges(factor_bonds)), 1)
    # the squares that the bonds discard add up to a bound of |T - T'|^2, hence the root of their number
    discarded_per_bond = tolerance * norm(factor_bonds, tensors) / sqrt(num_bonds)
    feasible = feasible_ranks(factor_bonds, open_sizes, ranks)
    return TruncationTarget(factor_bonds, open_sizes, feasible, discarded_per_bond, budget)


def _truncate_network(
    topology: Topology,
    factor_bonds: FactorBonds,
    tensors: Sequence[Tensor],
    target: TruncationTarget,
    gauge: Gauge,
    gradients: BondGradients | None,
) -> TruncationResult:
    """The truncated factors (n, *bonds) in a gauge, and the norm that each bond discarded."""
    short_factors, columns = qr_compress(tensors)
    # a best approximation lies in the span of the columns, so the algorithms see short factors only; the gauge
    # needs the long ones, whose largest entries decide the signs
    if gradients is None:
        short_factors, discarded = TRUNCATIONS[topology](factor_bonds, short_factors, target)
    else:
        short_factors, discarded = BY_IMPORTANCE[topology](factor_bonds, short_factors, target, gradients)
    return GAUGES[topology](factor_bonds, qr_expand(short_factors, columns), gauge), discarded


def _truncate_chain(
    factor_bonds: FactorBonds,
    tensors: Sequence[Tensor],
    ranks: Mapping[str, int],
    tolerance: float,
    budget: int | None,
    mode: Mode,
    gauge: Gauge,
    gradients: BondGradients | None,
) -> TruncationResult:
    """Truncate a chain from end to end, so that the result does not depend on the order in which it is declared."""
    declared = TrainOrder.of_chain(factor_bonds)  # its factors may be declared in any order
    standard, standard_bonds = declared.standard()
    # (n, *bonds) in the declared order -> cores (left, n, right) -> (n, left bond, right bond) from end to end
    factors = standard.factors_of(standard_bonds, declared.cores(factor_bonds, tensors))
    target = _target(standard_bonds, factors, ranks, tolerance, budget)
    if mode == "paper":
        factors, discarded = _truncate_as_printed(standard_bonds, factors, target, gauge)
    else:
        in_order = None if gradients is None else _from_left(declared, factor_bonds, gradients)
        factors, discarded = _truncate_network("chain", standard_bonds, factors, target, gauge, in_order)
    return declared.factors_of(factor_bonds, standard.cores(standard_bonds, factors)), discarded


def _from_left(order: TrainOrder, factor_bonds: FactorBonds, gradients: BondGradients) -> BondGradients:
    """The gradients of matrices on the side of each bond's left factor instead of the one that is declared first."""
    declared_first = {bond: ends[0] for bond, ends in edges(factor_bonds).items()}
    left_factor = dict(zip(order.bonds, order.factors[:-1], strict=True))
    return {
        bond: matrix if declared_first[bond] == left_factor[bond] else matrix.mT for bond, matrix in gradients.items()
    }


def _truncate_as_printed(
    factor_bonds: FactorBonds, tensors: Sequence[Tensor], target: TruncationTarget, gauge: Gauge
) -> TruncationResult:
    """MetaTT's Algorithm 1 on the chain as a train; it ends in the gauge "right"."""
    ranks = target.ranks
    if target.budget is not None:
        # Algorithm 1 takes ranks alone, so those of a budget are chosen beforehand
        ranks = target.choose(tree_singular_values(factor_bonds, tensors))
    order = TrainOrder.of_chain(factor_bonds)
    cores, discarded = metatt_algorithm_1(
        order.cores(factor_bonds, tensors), [ranks[bond] for bond in order.bonds], target.discarded_per_bond
    )
    factors = order.factors_of(factor_bonds, cores)
    if gauge != "right":
        factors = tree_in_gauge(factor_bonds, factors, gauge)
    return factors, dict(zip(order.bonds, discarded, strict=True))


def _check_mode(topology: Topology, mode: Mode, by_importance: bool) -> None:
    """Raise ValueError for an algorithm that the topology does not have."""
    if mode == "paper" and topology != "chain":
        raise ValueError(f"mode {mode!r} is an algorithm of chains, and this is a {topology}: use mode 'round'")
    if by_importance and mode == "paper":
        raise ValueError("mode 'paper' keeps the largest singular values: importance needs mode 'round'")
    if by_importance and topology not in BY_IMPORTANCE:
        raise ValueError(
            f"a {topology} has no singular values, and the fit that its truncation ends with undoes a choice by "
            "importance; truncate it without"
        )


def _check(topology: Topology, factor_bonds: FactorBonds, tensors: Sequence[Tensor], ranks: Mapping[str, int]) -> None:
    """Raise ValueError for a network without singular vectors, and for ranks that cannot be."""
    name = "train" if topology == "chain" else topology
    if any(not torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"the {name} is not finite")
    if norm(factor_bonds, tensors) == 0:
        raise ValueError(f"the {name} is zero: its singular vectors mean nothing, and a sweep would cripple it")
    sizes_now = bond_sizes(factor_bonds, tensors)
    for bond, rank in ranks.items():
        if bond not in sizes_now or not 1 <= rank <= sizes_now[bond]:
            raise ValueError(f"rank {rank} of bond {bond!r}: expected 1 to what it is now, {sizes_now}")
