"""The labels of one task: classes of any type, numbers, or sets of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora.learner.data import encode_labels
from metalora.learner.readouts import Targets

KINDS = ("auto", "classes", "numbers", "multilabel")
MIN_CLASS_ITEMS = 2
Array = np.ndarray[Any, Any]


@dataclass
class TaskLabels:
    """The labels of a support set, and how predictions become labels again.

    Attributes:
        kind: "classes", "numbers" or "multilabel".
        classes: The classes; empty for numbers.
        targets: What a readout is fitted to; None after loading.
        flat: The numbers have one output, so that predictions have the shape (m,).
    """

    kind: str
    classes: tuple[Any, ...]
    targets: Targets | None
    flat: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return what a task file says of its labels; those of the support set are not in it."""
        return {"kind": self.kind, "classes": list(self.classes), "flat": self.flat}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskLabels:
        """Return labels of what `to_dict` returned, without targets."""
        return cls(values["kind"], tuple(values["classes"]), None, values["flat"])

    @classmethod
    def of(cls, labels: Sequence[Any], kind: str, items: int) -> TaskLabels:
        """Encode labels.

        Args:
            labels: The labels: a list, an array, a tensor or a pandas Series.
            kind: What they are; "auto": sets and rows of 0 and 1 are multi-label, floats that are not whole numbers are
                numbers, everything else is a class.
            items: Number of inputs.

        Raises:
            ValueError: The numbers differ, a label is missing, or there are too few classes or items of a class.
        """
        check_choice("kind", kind, KINDS)
        values = _as_list(labels)
        if len(values) != items:
            raise ValueError(f"{items} inputs but {len(values)} labels")
        kind = _kind_of(values) if kind == "auto" else kind
        if kind == "numbers":
            return cls._numbers(values)
        return cls._multilabel(values) if kind == "multilabel" else cls._classes(values)

    @classmethod
    def _classes(cls, values: list[Any]) -> TaskLabels:
        column = encode_labels(values, "labels")
        missing = int((column.codes < 0).sum())
        if missing:
            raise ValueError(f"labels: {missing} of {len(values)} are missing")
        if len(column.classes) < 2:
            raise ValueError(f"labels: a task needs at least 2 classes, all are {column.classes[0]!r}")
        if len(column.classes) > len(values) // 2:
            raise ValueError(
                f"labels: {len(column.classes)} classes for {len(values)} inputs; expected 2 of each class"
            )
        counts = torch.bincount(column.codes, minlength=len(column.classes))
        for name, count in zip(column.classes, counts.tolist(), strict=True):
            if count < MIN_CLASS_ITEMS:
                raise ValueError(f"labels: class {name!r} has one example, expected at least {MIN_CLASS_ITEMS}")
        return cls("classes", column.classes, Targets.classes(column.codes, len(column.classes)))

    @classmethod
    def _numbers(cls, values: list[Any]) -> TaskLabels:
        try:
            array = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError('labels: kind "numbers" needs numbers') from None
        if not np.isfinite(array).all():
            raise ValueError("labels: a number is NaN or infinite")
        flat = array.ndim == 1
        matrix = torch.from_numpy(array.reshape(len(array), -1))
        return cls("numbers", (), Targets.numbers(matrix), flat)

    @classmethod
    def _multilabel(cls, values: list[Any]) -> TaskLabels:
        if all(isinstance(value, (set, frozenset, list, tuple)) and _of_names(value) for value in values):
            names = sorted({name for value in values for name in value}, key=str)
            matrix = torch.tensor([[float(name in value) for name in names] for value in values])
            return cls("multilabel", tuple(names), Targets.multilabel(matrix))
        array = np.asarray(values)
        if array.ndim != 2 or not np.isin(array, (0, 1)).all():
            raise ValueError('labels: kind "multilabel" needs sets of classes, or rows of 0 and 1')
        matrix = torch.from_numpy(array.astype(np.float32))
        return cls("multilabel", tuple(range(array.shape[1])), Targets.multilabel(matrix))

    def classes_array(self) -> Array:
        """Return the classes as an array of their own type."""
        array = np.asarray(self.classes)
        return array if len(array) == len(self.classes) and array.ndim == 1 else np.array(self.classes, dtype=object)

    def class_codes(self) -> Tensor:
        """Return a class number for each item, (n,): of numbers their quarter, of sets the first class."""
        assert self.targets is not None
        matrix = self.targets.matrix
        if self.kind == "numbers":
            first = matrix[:, 0]
            edges = torch.quantile(first, torch.tensor([0.25, 0.5, 0.75]))
            return torch.bucketize(first, edges)
        return matrix.argmax(1)

    def probabilities(self, logits: Array) -> Array:
        """Return probabilities (m, classes) of logits (m, classes)."""
        if self.kind == "numbers":
            raise ValueError("predict_proba: the labels of this task are numbers; use predict")
        scores = torch.from_numpy(logits)
        return (scores.sigmoid() if self.kind == "multilabel" else scores.softmax(1)).numpy()

    def decode(self, logits: Array) -> Any:
        """Return labels of logits: an array (m,), numbers (m,) or (m, outputs), or a list of sets."""
        if self.kind == "numbers":
            return logits[:, 0] if self.flat else logits
        if self.kind == "multilabel":
            return [{name for name, score in zip(self.classes, row, strict=True) if score > 0} for row in logits]
        return self.classes_array()[logits.argmax(1)]

    def score(self, predicted: Any, labels: Sequence[Any]) -> float:
        """Return the accuracy; R^2 for numbers; the mean accuracy over classes for sets."""
        values = _as_list(labels)
        if self.kind == "numbers":
            truth = np.asarray(values, dtype=float)
            residual = ((truth - predicted) ** 2).sum()
            return float(1 - residual / ((truth - truth.mean(0)) ** 2).sum())
        if self.kind == "multilabel":
            truth_sets = [set(value) if _of_names(value) else _ones(value) for value in values]
            pairs = list(zip(predicted, truth_sets, strict=True))
            return float(np.mean([(name in ours) == (name in truth) for ours, truth in pairs for name in self.classes]))
        return float(np.mean([a == b for a, b in zip(predicted.tolist(), values, strict=True)]))

    def summary(self) -> str:
        """Return what the labels are, in words."""
        if self.kind == "numbers":
            return "regression"
        return f"{len(self.classes)} {'labels' if self.kind == 'multilabel' else 'classes'}"


def _as_list(labels: Any) -> list[Any]:
    """Return labels as a list of Python values."""
    if hasattr(labels, "tolist"):  # arrays, tensors, pandas Series
        return list(labels.tolist())
    return [label.item() if isinstance(label, (np.generic, Tensor)) else label for label in labels]


def _kind_of(values: list[Any]) -> str:
    if values and all(isinstance(value, (set, frozenset, list, tuple)) for value in values):
        return "multilabel"
    if any(isinstance(value, float) and value == value and not float(value).is_integer() for value in values):
        return "numbers"
    return "classes"


def _of_names(value: Any) -> bool:
    """True for a set, or a list of names; a list of 0 and 1 is a row."""
    return isinstance(value, (set, frozenset)) or any(isinstance(item, str) for item in value) or not len(value)


def _ones(row: Sequence[Any]) -> set[int]:
    return {number for number, value in enumerate(row) if value}


def group_numbers(groups: Sequence[Any], items: int) -> Tensor:
    """Return the number of the group of each input, int64 (n,).

    Args:
        groups: The groups, of any type that labels may have.
        items: Number of inputs.

    Raises:
        ValueError: The numbers differ, or a group is missing.
    """
    codes = encode_labels(groups, "groups").codes
    if len(codes) != items:
        raise ValueError(f"{items} inputs but {len(codes)} groups")
    if (codes < 0).any():
        raise ValueError(f"groups: {int((codes < 0).sum())} of {items} are missing")
    return codes
