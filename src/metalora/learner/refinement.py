"""Generate, then fine-tune: gradient steps on an adapter or on its generated core, judged by a readout."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora._util.allocator import keeping_freed_memory
from metalora.adapters.conditioning.condition import Condition
from metalora.learner.features import to_device
from metalora.learner.labels import TaskLabels
from metalora.learner.readouts import Targets

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner
    from metalora.learner.task import AdaptedTask

Factors = dict[str, Tensor]


def refine_task(
    task: AdaptedTask, inputs: Sequence[Any], labels: Sequence[Any], steps: int, lr: float, seed: int
) -> AdaptedTask:
    """Return a task after fine-tuning, without changing the given one or the learner.

    A generated adapter has its core fine-tuned, which is the condition; a static one has all of its factors.

    Args:
        task: The task to start from.
        inputs: Labelled inputs.
        labels: Their labels.
        steps: Number of steps.
        lr: Learning rate of AdamW.
        seed: Seed of the random halves.

    Raises:
        ValueError: The learner has no adapter, or inputs and labels do not fit.
    """
    from metalora.learner.task import AdaptedTask, LabelledItems

    learner = task.learner
    if learner.adapter is None:
        raise ValueError("refine: this learner has no adapter to fine-tune")
    items = list(inputs)
    encoder = TaskLabels.of(labels, task.kind, len(items))
    assert encoder.targets is not None
    losses = HalfLosses(learner, items, encoder.targets, seed)
    if task.condition is not None:
        condition, factors = _refined_condition(task.condition, losses, steps, lr), task.factors
    else:
        condition, factors = None, _refined_factors(learner, task.factors, losses, steps, lr)
    with learner.features.factor_use.others(factors), torch.no_grad():
        support = learner.encode(items, condition)
        readout = learner.readout.fit(support, encoder.targets, frozen_width=learner.frozen_width)
    return AdaptedTask(learner, readout, encoder, condition, factors, LabelledItems(items, list(labels)))


def _refined_condition(condition: Condition, losses: HalfLosses, steps: int, lr: float) -> Condition:
    values = {key: value.clone().requires_grad_() for key, value in condition.values.items()}
    trained = replace(condition, values=values)
    descend(list(values.values()), losses.stream(trained, steps), lr)
    return trained.detach()


def _refined_factors(
    learner: MetaLearner, factors: Factors | None, losses: HalfLosses, steps: int, lr: float
) -> Factors:
    adapter = learner.adapter
    assert adapter is not None
    start = factors or {key: value.detach() for key, value in adapter.learned.items()}
    copies = {key: value.clone() for key, value in start.items()}
    with learner.features.factor_use.others(copies):  # the steps change the copies, in place
        descend(list(adapter.learned.values()), losses.stream(None, steps), lr)
    return copies


def descend(parameters: Sequence[Tensor], losses: Iterator[Tensor], lr: float) -> None:
    """Take a step of AdamW for each loss; the parameters keep no gradient."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    with keeping_freed_memory():
        for loss in losses:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    optimizer.zero_grad()


class HalfLosses:
    """Losses of labelled inputs: a random half makes a readout, which the other half judges.

    Args:
        learner: The learner.
        items: The inputs.
        targets: Their labels.
        seed: Seed of the halves.
    """

    def __init__(self, learner: MetaLearner, items: Sequence[Any], targets: Targets, seed: int):
        self.learner = learner
        self.inputs = to_device(learner.backbone.preprocessor(items), learner.device)
        self.frozen = learner.features.frozen(self.inputs)
        self.targets = targets.to(self.frozen)
        self.generator = torch.Generator().manual_seed(seed)
        self.readout = copy.deepcopy(learner.readout).train()  # other threads fit the learner's own, in eval mode

    def stream(self, condition: Condition | None, steps: int) -> Iterator[Tensor]:
        """Yield a loss for every step, a scalar.

        Args:
            condition: The condition that is trained; None if the factors are.
            steps: Number of losses.
        """
        count = len(self.frozen)
        for _ in range(steps):
            order = torch.randperm(count, generator=self.generator)
            first, second = (half.to(self.frozen.device) for half in halves(order, self.targets))
            phi = torch.cat([self.frozen, self.learner.features.adapted(self.inputs, condition)], 1)
            of_first = rows_of_targets(self.targets, first)
            fitted = self.readout.fit(phi[first], of_first, frozen_width=self.frozen.shape[1])
            yield target_loss(fitted.logits(phi[second]), rows_of_targets(self.targets, second))


def halves(order: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return two halves of the examples; each class is divided, and its only example is in the first half.

    A readout cannot be made from a half that lacks a class.

    Args:
        order: The examples in random order, (n,).
        targets: Their labels; those that are no classes are divided by the order alone.
    """
    if targets.kind != "classes":
        return order[: len(order) // 2], order[len(order) // 2 :]
    of_class = targets.matrix.cpu().bool()[order]  # (n, classes)
    earlier = of_class.cumsum(0)[of_class] - 1  # how many of its class come before each example
    return order[earlier % 2 == 0], order[earlier % 2 == 1]


def rows_of_targets(targets: Targets, rows: Tensor) -> Targets:
    """Return the targets of some examples."""
    return Targets(targets.kind, targets.matrix[rows], targets.count)


def target_loss(outputs: Tensor, targets: Targets) -> Tensor:
    """Return the loss of outputs (m, t): cross-entropy, binary cross-entropy, or the squared error of numbers."""
    if targets.kind == "classes":
        return F.cross_entropy(outputs, targets.matrix.argmax(1))
    if targets.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(outputs, targets.matrix)
    return F.mse_loss(outputs, targets.matrix)
