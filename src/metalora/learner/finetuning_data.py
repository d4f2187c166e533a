"""What fine-tuning to one task needs to know of its labels: classes, a stratified split, scores."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class HeldOutScore:
    """The score of one step on inputs that are not trained on.

    Attributes:
        accuracy: Share of right predictions.
        macro_f1: Mean over the classes of 2 TP / (2 TP + FP + FN).
        step: Number of steps that were done.
    """

    accuracy: float
    macro_f1: float
    step: int

    @classmethod
    def of(cls, predicted: Tensor, codes: Tensor, classes: int, step: int) -> HeldOutScore:
        """Return the score of predictions.

        Args:
            predicted: Predicted classes, (m,).
            codes: True classes, (m,).
            classes: Number of classes.
            step: Number of steps that were done.

        Example:
            >>> HeldOutScore.of(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 2, step=5)
            HeldOutScore(accuracy=0.6666666666666666, macro_f1=0.6666666666666666, step=5)
        """
        confusion = torch.bincount(codes * classes + predicted, minlength=classes * classes).view(classes, classes)
        right = confusion.diagonal().double()
        total = (confusion.sum(0) + confusion.sum(1)).double()
        f1 = (2 * right / total.clamp_min(1)).tolist()
        accuracy = float(right.sum() / max(len(codes), 1))
        return cls(accuracy, fmean(f1), step)


@dataclass(frozen=True)
class Scores:
    """How well a fine-tuned network does on inputs that were not trained on; they chose the best step, too.

    Attributes:
        inputs: Number of these inputs.
        accuracy: Share of right predictions.
        macro_f1: Mean F1 over the classes.
        step: The best step.
        head_alone: Accuracy of a logistic regression on the frozen features, where the training started.
    """

    inputs: int
    accuracy: float
    macro_f1: float
    step: int
    head_alone: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values."""
        return asdict(self)


def check_classes(labels: Any) -> Any:
    """Return labels if they can be classes.

    Raises:
        ValueError: They are measurements, or sets.
    """
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for value in values:
        if isinstance(value, (set, frozenset, list, tuple, dict)):
            raise ValueError("labels: finetune takes one class for each input, not several")
        is_number = isinstance(value, (float, np.floating)) and value == value
        if is_number and not float(value).is_integer():
            raise ValueError(f"labels: {value} is a measurement, not a class; finetune takes classes")
    return labels


def stratified_split(codes: Tensor, share: float, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split inputs into those that are trained on and those that are kept, class by class.

    Args:
        codes: Classes, (n,); every class has at least two inputs.
        share: Share of each class that is kept: at least one input, at most all but one.
        seed: Seed of the choice.
        groups: Group of each input, (n,): the inputs of a group stay together, and the share is then rounded to
            1 / 2, 1 / 3, ...

    Returns:
        The positions of both, sorted.

    Raises:
        ValueError: The share is not between 0 and 1; there are fewer groups than folds; or a class has one group.

    Example:
        >>> trained, kept = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), 0.25, seed=0)
        >>> len(trained), len(kept)
        (4, 2)
    """
    if not 0 < share < 1:
        raise ValueError(f"holdout_items is {share}, expected a share between 0 and 1")
    if groups is not None:
        return _group_split(codes, share, seed, groups)
    generator = torch.Generator().manual_seed(seed)
    trained, kept = [], []
    for code in torch.unique(codes).tolist():
        rows = (codes == code).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        kept.append(rows[:count])
        trained.append(rows[count:])
    return torch.cat(trained).sort().values, torch.cat(kept).sort().values


def _group_split(codes: Tensor, share: float, seed: int, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions that are trained on and kept, so that no group is in both; see `stratified_split`."""
    from sklearn.model_selection import StratifiedGroupKFold

    single = [code for code in torch.unique(codes).tolist() if len(torch.unique(groups[codes == code])) < 2]
    if single:
        raise ValueError(f"groups: all inputs of {len(single)} classes are in one group; a class needs two groups")
    folds = min(max(2, round(1 / share)), int(torch.bincount(codes).max()))
    count = len(torch.unique(groups))
    if count < folds:
        raise ValueError(f"groups: {count} groups, but holdout_items {share} needs at least {folds}")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # what matters of it is checked below
        trained, kept = next(splitter.split(np.zeros(len(codes)), codes.numpy(), groups.numpy()))
    missing = set(codes.tolist()) - set(codes[trained].tolist())
    if missing:
        raise ValueError(f"groups: {len(missing)} classes would have no input to train on; another seed may do")
    return torch.from_numpy(trained), torch.from_numpy(kept)
