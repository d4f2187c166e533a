"""What the adapting lane computes: a task to store, and a preview of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalora.learner.labels import TaskLabels
from metalora.learner.learner import MetaLearner
from metalora.learner.readouts import FittedReadout
from metalora.learner.task import AdaptedTask
from metalora.serving.errors import ServiceError
from metalora.serving.schemas import Judged, Neighbour, Predictions, PreviewReply

MISFITS = (ValueError, TypeError, OverflowError)  # of labels that are no task


@dataclass(frozen=True)
class Support:
    """A support set whose inputs are prepared.

    Attributes:
        encoded: The inputs, as `Preprocessor.encode` has prepared them.
        labels: Their labels.
        kind: What the labels are; see `MetaLearner.adapt`.
        groups: Their groups, or None.
    """

    encoded: Sequence[Tensor]
    labels: Sequence[Any]
    kind: str = "auto"
    groups: Sequence[Any] | None = None


@dataclass(frozen=True)
class MadeTask:
    """A task that is ready to be stored.

    Attributes:
        content: The content of its file.
        summary: What answers say of it.
    """

    content: bytes
    summary: dict[str, Any]


def adapted(learner: MetaLearner, support: Support) -> AdaptedTask:
    """Return the task of a support set; ServiceError with the sentence of the library if it is none."""
    try:
        return learner.adapt(support.encoded, support.labels, kind=support.kind, groups=support.groups)
    except MISFITS as error:
        name = str(error).partition(":")[0]
        field = name if name in ("labels", "groups", "kind") else None
        raise ServiceError("invalid_input", str(error), field) from None


def made_task(learner: MetaLearner, support: Support, most_bytes: int, fingerprint: str) -> MadeTask:
    """Return the file and the summary of the task of a support set.

    Args:
        learner: The learner of the adapting lane.
        support: The support set.
        most_bytes: Largest size of its numbers.
        fingerprint: That of the learner.

    Raises:
        ServiceError: The support set is no task, or the task is too large.
    """
    task = adapted(learner, support)
    try:
        content = task.to_bytes(max_bytes=most_bytes, fingerprint=fingerprint)
    except ValueError as error:
        raise ServiceError("invalid_input", str(error)) from None
    summary = {
        "kind": task.kind,
        "classes": list(task.labels.classes),
        "examples": len(support.encoded),
        "accuracy": accuracy(task.labels, task.readout, support.labels),
    }
    return MadeTask(content, summary)


def accuracy(labels: TaskLabels, readout: FittedReadout, truth: Sequence[Any]) -> float | None:
    """Return the leave-one-out accuracy on the support set; None for numbers."""
    if labels.kind == "numbers":
        return None
    return labels.score(labels.decode(readout.leave_one_out.float().cpu().numpy()), truth)


def predictions(labels: TaskLabels, logits: Tensor, novelty: Tensor) -> Predictions:
    """Return predictions as an answer has them.

    Args:
        labels: The labels of the task.
        logits: Logits or numbers, (m, count).
        novelty: (m,).
    """
    is_numbers = labels.kind == "numbers"
    probabilities = None if is_numbers else labels.probabilities(logits.numpy()).tolist()
    return Predictions(
        labels=_labels(labels, logits), probabilities=probabilities, abstention=[float(value) for value in novelty]
    )


def _labels(labels: TaskLabels, logits: Tensor) -> list[Any]:
    if labels.kind == "classes":
        return [labels.classes[number] for number in logits.argmax(1).tolist()]
    if labels.kind == "multilabel":
        rows = logits.tolist()
        return [[name for name, score in zip(labels.classes, row, strict=True) if score > 0] for row in rows]
    return list((logits[:, 0] if labels.flat else logits).tolist())


@torch.no_grad()
def preview(learner: MetaLearner, support: Support, queries: Sequence[Tensor], neighbours: int) -> PreviewReply:
    """Return what the task of a support set says of queries, next to the frozen network with a readout.

    Args:
        learner: The learner of the adapting lane.
        support: The support set.
        queries: The queries, prepared.
        neighbours: How many of the nearest examples are named for each query.

    Raises:
        ServiceError: The support set is no task.
    """
    task = adapted(learner, support)
    assert task.labels.targets is not None
    features = task.features(queries)
    frozen_support, frozen = learner.frozen_features(support.encoded), features[:, : learner.frozen_width]
    plain = learner.plain_readout.fit(frozen_support, task.labels.targets, frozen_width=learner.frozen_width)
    return PreviewReply(
        classes=list(task.labels.classes),
        adapted=_judged(task.labels, task.readout, features, support.labels),
        frozen=_judged(task.labels, plain, frozen, support.labels),
        neighbours=_neighbours(task.readout, features, neighbours),
    )


def _judged(labels: TaskLabels, readout: FittedReadout, features: Tensor, truth: Sequence[Any]) -> Judged:
    said = predictions(labels, readout.logits(features).float().cpu(), readout.novelty(features).float().cpu())
    return Judged(**dict(said), accuracy=accuracy(labels, readout, truth))


def _neighbours(readout: FittedReadout, features: Tensor, count: int) -> list[list[Neighbour]]:
    """Return the nearest examples of queries, in the features that are weighted by what they tell of the task."""
    if not count:
        return [[] for _ in features]
    indices, distances = readout.neighbours(features, min(count, len(readout.support)))
    pairs = zip(indices.tolist(), distances.tolist(), strict=True)
    return [
        [Neighbour(example=number, distance=value) for number, value in zip(numbers, values, strict=True)]
        for numbers, values in pairs
    ]
