"""Rounding of tensor trains: `truncate` for lists of cores.

A train is a list of cores (r_{k-1}, n_k, r_k) with r_0 = r_d = 1; bond k lies between core k and core k + 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from metalora.tensornet import gram, topology
from metalora.tensornet.truncation.gauge import Gauge
from metalora.tensornet.truncation.target import TruncationTarget
from metalora.tensornet.truncation.train import TrainOrder
from metalora.tensornet.truncation.tree import tree_singular_values
from metalora.tensornet.truncation.truncate import Mode, truncate


@dataclass(frozen=True)
class RoundedTrain:
    """A train after rounding.

    Attributes:
        cores: (r_{k-1}, n_k, r_k) each.
        ranks: The size of every bond.
        discarded: The norm that every bond discarded.
    """

    cores: list[Tensor]
    ranks: tuple[int, ...]
    discarded: tuple[float, ...]

    @property
    def bound(self) -> float:
        """The root of the sum of the discarded squares: |T - T'|_F is at most this, except in mode "paper"."""
        return sqrt(sum(value**2 for value in self.discarded))


def round_train(
    cores: Sequence[Tensor],
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float = 0.0,
    budget: int | None = None,
    mode: Mode = "round",
    gauge: Gauge = "left",
) -> RoundedTrain:
    """Truncate a train to ranks, to a relative error or to a number of parameters; computed in float64.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.
        ranks: Of the bonds, lowered to what is feasible; None keeps them.
        tolerance: |T - T'|_F <= tolerance |T|_F: each bond discards at most tolerance |T| / sqrt(d - 1).
        budget: The largest number of parameters: the relatively largest singular values of all bonds stay.
        mode: "round": all bonds by their singular values, then pair by pair (`tree.truncate_tree`).
            "paper": from the left, then from the right, as printed (MetaTT, Algorithm 1).
        gauge: Where the norm is in the result: in the last core ("left"), in the first ("right"), shared by all
            ("balanced").

    Returns:
        The cores in the dtype of the old ones; the largest entry of every singular vector is positive.

    Raises:
        ValueError: A zero or not finite train, ranks that grow, a budget below the number of parameters at rank one,
            more than one of ranks, tolerance and budget.

    Example:
        >>> import torch
        >>> cores = [torch.ones(1, 4, 3), torch.ones(3, 5, 3), torch.ones(3, 6, 1)]
        >>> round_train(cores, tolerance=1e-3).ranks
        (1, 1)
    """
    if (ranks is not None) + (tolerance > 0) + (budget is not None) > 1:
        raise ValueError("a train is rounded to ranks, to a tolerance or to a budget: give one of them")
    factor_bonds, order, tensors = _chain(cores)
    ranks_of_bonds = None
    if ranks is not None:
        _check_ranks(ranks, [core.shape[2] for core in cores[:-1]])  # r_1 ... r_{d-1}; r_d is one
        ranks_of_bonds = dict(zip(order.bonds, ranks, strict=True))
    truncated = truncate(
        factor_bonds, tensors, ranks=ranks_of_bonds, tolerance=tolerance, budget=budget, mode=mode, gauge=gauge
    )
    return RoundedTrain(
        order.cores(factor_bonds, truncated.tensors),
        _in_order(order, truncated.ranks),
        tuple(truncated.discarded[bond] for bond in order.bonds),
    )


def train_norm(cores: Sequence[Tensor]) -> float:
    """Return |T|_F of a train, from the Gram matrices of its cores.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.

    Example:
        >>> import torch
        >>> train_norm([torch.ones(1, 4, 1), torch.ones(1, 9, 1)])
        6.0
    """
    factor_bonds, _, tensors = _chain(cores)
    return gram.norm(factor_bonds, tensors)


def singular_values(cores: Sequence[Tensor]) -> list[Tensor]:
    """Return the singular values of a train at every bond, the largest first: (r_k,) each.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.

    Example:
        >>> import torch
        >>> [float(values) for values in singular_values([torch.ones(1, 4, 1), torch.ones(1, 9, 1)])]
        [6.0]
    """
    factor_bonds, order, tensors = _chain(cores)
    values = tree_singular_values(factor_bonds, [tensor.detach().double() for tensor in tensors])
    return [values[bond] for bond in order.bonds]


def feasible_train_ranks(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """Lower ranks to r_k <= r_{k-1} n_k and r_k <= n_{k+1} r_{k+1}, hence to the smaller side of every bond.

    Args:
        sizes: n_k of every core.
        ranks: The wanted rank of every bond.

    Example:
        >>> feasible_train_ranks((2, 5, 3, 10), (6, 7, 20))
        (2, 7, 10)
    """
    order, factor_bonds = TrainOrder.of_train(len(sizes)).standard()
    wanted = dict(zip(order.bonds, ranks, strict=True))
    return _in_order(order, topology.feasible_ranks(factor_bonds, sizes, wanted))


def ranks_for_budget(cores: Sequence[Tensor], budget: int) -> tuple[int, ...]:
    """Choose ranks whose cores have at most `budget` numbers, the relatively largest singular values first.

    Args:
        cores: (r_{k-1}, n_k, r_k) each.
        budget: The largest number of parameters.

    Returns:
        The rank of every bond, (d - 1) numbers.

    Raises:
        ValueError: The budget is below the number of parameters at rank one.

    Example:
        >>> import torch
        >>> cores = [torch.eye(3).reshape(1, 3, 3), torch.eye(3).reshape(3, 3, 1)]
        >>> ranks_for_budget(cores, budget=12)  # 6 parameters a rank
        (2,)
    """
    factor_bonds, order, tensors = _chain(cores)
    open_sizes = tuple(len(tensor) for tensor in tensors)  # n_k of every core
    target = TruncationTarget(factor_bonds, open_sizes, topology.bond_sizes(factor_bonds, tensors), budget=budget)
    values = tree_singular_values(factor_bonds, [tensor.detach().double() for tensor in tensors])
    return _in_order(order, target.choose(values))


def _chain(cores: Sequence[Tensor]) -> tuple[tuple[tuple[str, ...], ...], TrainOrder, list[Tensor]]:
    """The bonds, the order and the factors (n, *bonds) of a train."""
    order, factor_bonds = TrainOrder.of_train(len(cores)).standard()
    return factor_bonds, order, order.factors_of(factor_bonds, cores)


def _in_order(order: TrainOrder, ranks: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(ranks[bond] for bond in order.bonds)


def _check_ranks(ranks: Sequence[int], ranks_now: Sequence[int]) -> None:
    if len(ranks) != len(ranks_now) or min(ranks, default=1) < 1:
        raise ValueError(f"ranks are {list(ranks)}, expected {len(ranks_now)} numbers of at least 1")
    if any(new > old for new, old in zip(ranks, ranks_now, strict=True)):
        raise ValueError(f"ranks {list(ranks)} grow above {list(ranks_now)}: a sweep can only lower them")
