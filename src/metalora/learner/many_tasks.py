"""Inputs of many tasks in one forward pass of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Condition
from metalora.learner.learner import MetaLearner
from metalora.learner.task import AdaptedTask


class TaskOutputs(NamedTuple):
    """What a task says of its rows.

    Attributes:
        logits: Logits of the classes, or predicted numbers, (m, count).
        novelty: How unlike the support set each row is, (m,), from 0 to 1.
        embeddings: Weighted features, (m, d').
    """

    logits: Tensor
    novelty: Tensor
    embeddings: Tensor


@torch.no_grad()
def outputs_of_many(
    learner: MetaLearner, inputs: Any, tasks: Sequence[AdaptedTask], counts: Sequence[int]
) -> list[TaskOutputs]:
    """Return the outputs of several tasks from one pass of the network over all their rows.

    Args:
        learner: The learner of all tasks.
        inputs: What the network takes, for n rows: those of the first task, of the second, and so on.
        tasks: The tasks; none with factors of its own.
        counts: Number of rows of each task; their sum is n.

    Returns:
        The outputs of each task.
    """
    features = torch.cat([learner.features.frozen(inputs), _adapted(learner, inputs, tasks, counts)], 1)
    parts = torch.split(features, list(counts))
    return [_outputs(task, part) for task, part in zip(tasks, parts, strict=True)]


def _adapted(learner: MetaLearner, inputs: Any, tasks: Sequence[AdaptedTask], counts: Sequence[int]) -> Tensor:
    conditions = [task.condition for task in tasks if task.condition is not None]
    if not conditions:
        return learner.features.adapted(inputs)
    repeated = [condition for condition, count in zip(conditions, counts, strict=True) for _ in range(count)]
    return learner.features.adapted(inputs, Condition.stack(repeated))


def _outputs(task: AdaptedTask, features: Tensor) -> TaskOutputs:
    readout = task.readout
    return TaskOutputs(readout.logits(features), readout.novelty(features), readout.embed(features))
