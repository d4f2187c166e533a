"""Several tasks from their support sets, whose inputs share the passes of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Condition
from metalora.learner.labels import TaskLabels, group_numbers
from metalora.learner.task import AdaptedTask, LabelledItems, fit_readout

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner


@torch.no_grad()
def adapt_tasks(
    learner: MetaLearner, support_sets: Sequence[tuple[Sequence[Any], ...]], kind: str = "auto"
) -> list[AdaptedTask]:
    """Make tasks from support sets, whose inputs share the passes of the network; see `MetaLearner.adapt_many`."""
    sets = [LabelledItems(*(part if part is None else list(part) for part in given)) for given in support_sets]
    if not sets:
        return []
    encoders = [TaskLabels.of(given.labels, kind, len(given.inputs)) for given in sets]
    groups = [None if given.groups is None else group_numbers(given.groups, len(given.inputs)) for given in sets]
    sizes = [len(given.inputs) for given in sets]
    items = [item for given in sets for item in given.inputs]
    frozen = learner.frozen_features(items)
    learner.frozen_width = frozen.shape[1]
    conditions = _conditions(learner, sets, encoders, torch.split(frozen, sizes))
    owners = torch.arange(len(sets)).repeat_interleave(torch.tensor(sizes))
    features = torch.cat([frozen, _adapted_features(learner, items, conditions, owners)], 1)
    tasks = []
    for number, support in enumerate(torch.split(features, sizes)):
        codes = groups[number]
        codes = None if codes is None else codes.to(learner.device)
        readout = fit_readout(learner, support, encoders[number], sets[number], codes)
        tasks.append(AdaptedTask(learner, readout, encoders[number], conditions[number], None, sets[number]))
    return tasks


def _conditions(
    learner: MetaLearner, sets: Sequence[LabelledItems], labels: Sequence[TaskLabels], frozen: Sequence[Tensor]
) -> list[Condition | None]:
    """Return the condition of each support set with frozen features (n, d); None if the adapter takes none from it."""
    if learner.generator is None:
        return [None] * len(sets)
    return [
        learner.support_condition(given.inputs, part, encoder.class_codes())
        for given, part, encoder in zip(sets, frozen, labels, strict=True)
    ]


def _adapted_features(
    learner: MetaLearner, items: Sequence[Any], conditions: Sequence[Condition | None], owners: Tensor
) -> Tensor:
    """Return the features of the adapted network, (n, d), each item under the condition of its owner, (n,)."""
    own = [condition for condition in conditions if condition is not None]
    stacked = Condition.stack(own) if own else None
    rows = torch.split(owners, learner.config.batch_size)
    return torch.cat(
        [
            learner.features.adapted(batch, stacked, None if stacked is None else part)
            for batch, part in zip(learner.batches(items), rows, strict=True)
        ]
    )
