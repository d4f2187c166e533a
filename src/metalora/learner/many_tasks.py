"""Inputs of many tasks in one forward pass of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.condition_table import stacked
from metalora.learner.features import batch_size, rows_of
from metalora.learner.learner import MetaLearner
from metalora.learner.task import AdaptedTask


class TaskOutputs(NamedTuple):
    """What a task says of its rows.

    Attributes:
        logits: Logits of the classes, or predicted numbers, (m, count).
        novelty: How unlike the support set each row is, (m,), from 0 to 1; (0,) if it was not asked for.
        embeddings: Weighted features, (m, d'); (m, 0) if they were not asked for.
    """

    logits: Tensor
    novelty: Tensor
    embeddings: Tensor


@torch.no_grad()
def outputs_of_many(
    learner: MetaLearner,
    inputs: Any,
    tasks: Sequence[AdaptedTask],
    counts: Sequence[int],
    *,
    conditions: Condition | None = None,
    novelty: bool = True,
    embeddings: bool = True,
) -> list[TaskOutputs]:
    """Return the outputs of several tasks from one pass of the frozen and one of the adapted network over all rows.

    Tasks with factors of their own (`AdaptedTask.refine`) have a pass of the adapted network each.

    Args:
        learner: The learner of all tasks, or a replica of it.
        inputs: What the network takes, for n rows: those of the first task, of the second, and so on.
        tasks: The tasks.
        counts: Number of rows of each task; their sum is n.
        conditions: The conditions of the tasks, one each in their order, such as `ConditionTable.take` returns; None:
            they are taken from the tasks.
        novelty: Whether the novelty is computed.
        embeddings: Whether the embeddings are returned.

    Returns:
        The outputs of each task.

    Raises:
        ValueError: The numbers of rows, tasks and conditions do not fit, the task of another adapter, or features that
            are not finite.

    Example:
        >>> from torch import nn
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> learner = MetaLearner(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16)))
        >>> inputs = torch.randn(20, 8)
        >>> tasks = [learner.adapt(inputs.numpy(), ["a", "b"] * 10), learner.adapt(inputs.numpy(), [1, 2, 3, 4] * 5)]
        >>> [tuple(outputs.logits.shape) for outputs in outputs_of_many(learner, inputs[:7], tasks, [3, 4])]
        [(3, 2), (4, 4)]
    """
    _check(batch_size(inputs), tasks, counts)
    adapted = _adapted(learner, inputs, tasks, counts, conditions)
    features = torch.cat([learner.features.frozen(inputs), adapted], 1)
    parts = torch.split(features, list(counts))
    return [_outputs(task, part, novelty, embeddings) for task, part in zip(tasks, parts, strict=True)]


def _check(rows: int, tasks: Sequence[AdaptedTask], counts: Sequence[int]) -> None:
    if len(tasks) != len(counts) or sum(counts) != rows:
        raise ValueError(f"{rows} rows, {len(tasks)} tasks and counts {list(counts)}: expected the rows of each task")
    for task in tasks:
        task.check_learner()


def _adapted(
    learner: MetaLearner,
    inputs: Any,
    tasks: Sequence[AdaptedTask],
    counts: Sequence[int],
    conditions: Condition | None,
) -> Tensor:
    """Return the features of the adapted network, (n, d)."""
    condition = _conditions_of(tasks) if conditions is None else conditions
    if condition is not None and len(condition) != len(tasks):
        raise ValueError(f"{len(condition)} conditions for {len(tasks)} tasks")
    owners = torch.arange(len(tasks)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))  # (n,)
    refined = torch.tensor([task.factors is not None for task in tasks])[owners]
    if not refined.any():
        return learner.features.adapted(inputs, condition, None if condition is None else owners)
    return _with_refined(learner, inputs, tasks, condition, owners, refined)


def _with_refined(
    learner: MetaLearner,
    inputs: Any,
    tasks: Sequence[AdaptedTask],
    condition: Condition | None,
    owners: Tensor,
    refined: Tensor,
) -> Tensor:
    """Return the features of the adapted network, (n, d), of which some rows have factors of their own."""
    groups = [
        (~refined, None),
        *((owners == k, task.factors) for k, task in enumerate(tasks) if task.factors is not None),
    ]
    features = []
    for is_in, factors in groups:
        rows = is_in.nonzero()[:, 0]
        if len(rows):
            own = None if condition is None else owners[rows]
            with learner.features.factor_use.others(factors):
                features.append((rows, learner.features.adapted(rows_of(inputs, rows), condition, own)))
    order = torch.cat([rows for rows, _ in features]).argsort()
    return torch.cat([part for _, part in features])[order]


def _conditions_of(tasks: Sequence[AdaptedTask]) -> Condition | None:
    """Return the conditions of the tasks as one; None if the adapter takes none from a support set."""
    stored = [task.stored_condition for task in tasks if task.stored_condition is not None]
    if stored and len(stored) != len(tasks):
        raise ValueError(f"{len(stored)} of {len(tasks)} tasks have a condition: they are of several learners")
    return stacked(stored) if stored else None


def _outputs(task: AdaptedTask, features: Tensor, novelty: bool, embeddings: bool) -> TaskOutputs:
    logits, novelties, weighted = task.readout.outputs(features, novelty=novelty)
    return TaskOutputs(logits, novelties, weighted if embeddings else weighted[:, :0])
