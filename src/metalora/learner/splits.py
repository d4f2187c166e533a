"""What of the tasks is trained on, and what is kept for the validation and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.learner.data import TaskPool

AUTOMATIC_HOLDOUT = 5  # from this number of tasks on, a fifth of them is held out unless the caller says otherwise
MIN_ITEMS = 12  # an episode needs two classes with three support items each, and queries


@dataclass(frozen=True)
class Split:
    """Pools that are trained on, and pools of other inputs that judge the training.

    Attributes:
        trained: Inputs with the columns that are trained on; none if that is not known.
        kept: The other inputs, with all columns.
        held_out: Names of the tasks that are not trained on.
        too_small: Pools of kept inputs that are too few for an episode, so that they judge nothing.
    """

    trained: list[TaskPool]
    kept: list[TaskPool]
    held_out: tuple[str, ...]
    too_small: list[TaskPool] = field(default_factory=list)

    @property
    def tasks(self) -> list[tuple[int, str]]:
        """Number of the pool and name of the column, of every task of the inputs that were kept."""
        return [(number, name) for number, pool in enumerate(self.kept) for name in pool.columns]

    def without_episode(self) -> str:
        """Say why the kept inputs make no episode, in words that continue a sentence."""
        if not self.kept + self.too_small:
            return "no inputs are kept"
        of_pools = [list(pool.columns.values()) for pool in self.kept + self.too_small if pool.columns]
        if not of_pools:
            return "the inputs that are kept have no labels"
        inputs = sum(int(torch.stack([column.codes >= 0 for column in columns]).any(0).sum()) for columns in of_pools)
        classes = max(int((column.counts() > 0).sum()) for columns in of_pools for column in columns)
        return (
            f"the {inputs} labelled inputs that are kept, of {classes} classes in a task at most, are too few for an "
            "episode, which needs two classes with three support inputs each, and queries"
        )


def split_pools(
    pools: Sequence[TaskPool], holdout: int | Sequence[str] | None, holdout_items: float, seed: int
) -> Split:
    """Split tasks and inputs into those that are trained on and those that are kept.

    Args:
        pools: All pools.
        holdout: How many tasks, or which, are held out; None: a fifth if there are at least five.
        holdout_items: Share of the inputs of each pool that is kept; groups stay together.
        seed: Seed of the choice.

    Raises:
        ValueError: An unknown task, or nothing is left to train on.
    """
    pools = named_by_pool(pools)
    names = list(dict.fromkeys(name for pool in pools for name in pool.columns))
    held_out = _held_out(names, holdout, seed)
    generator = torch.Generator().manual_seed(seed)
    trained, kept = [], []
    for pool in pools:
        columns = [name for name in pool.columns if name not in held_out]
        if pool.columns and not columns:
            kept.append(pool)  # nothing of it is trained on
            continue
        is_kept = _kept_rows(pool, holdout_items, generator)
        trained.append(pool.select_columns(columns).take((~is_kept).nonzero()[:, 0]))
        if is_kept.any():
            kept.append(pool.take(is_kept.nonzero()[:, 0]))
    if not trained:
        raise ValueError("all tasks are held out: nothing is left to train on")
    large = [pool for pool in kept if len(pool) >= MIN_ITEMS]
    return Split(trained, large, held_out, [pool for pool in kept if len(pool) < MIN_ITEMS])


def named_by_pool(pools: Sequence[TaskPool]) -> list[TaskPool]:
    """Return pools whose columns have different names: with several pools, the name of the pool is part of them.

    Args:
        pools: The pools.

    Example:
        >>> from metalora.learner.data import encode_labels
        >>> pools = [TaskPool(["a", "b"], {"labels": encode_labels([0, 1])}, name=name) for name in ("ripe", "sort")]
        >>> [list(pool.columns) for pool in named_by_pool(pools)]
        [['ripe'], ['sort']]
    """
    if len(pools) == 1:
        return list(pools)
    renamed = []
    for pool in pools:
        columns = {}
        for name, column in pool.columns.items():
            full_name = pool.name if len(pool.columns) == 1 else f"{pool.name}: {name}"
            columns[full_name] = replace(column, name=full_name)
        renamed.append(replace(pool, columns=columns))
    return renamed


def _held_out(names: list[str], holdout: int | Sequence[str] | None, seed: int) -> tuple[str, ...]:
    if holdout is None:
        holdout = len(names) // 5 if len(names) >= AUTOMATIC_HOLDOUT else 0
    if isinstance(holdout, int):
        if not 0 <= holdout <= len(names):
            raise ValueError(f"holdout is {holdout}, but there are {len(names)} tasks")
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        return tuple(sorted(names[number] for number in order[:holdout]))
    for name in holdout:
        if name not in names:
            raise ValueError(f"holdout names the task {name!r}{nearest(name, names)}")
    return tuple(holdout)


def _kept_rows(pool: TaskPool, share: float, generator: torch.Generator) -> Tensor:
    """Return which inputs are kept, booleans (n,); inputs of one group are kept together."""
    groups = torch.arange(len(pool.inputs)) if pool.groups is None else pool.groups
    names, index = torch.unique(groups, return_inverse=True)
    order = torch.randperm(len(names), generator=generator)
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[order[: round(share * len(names))]] = True
    return chosen[index]
