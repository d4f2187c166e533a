"""What a readout is fitted to: classes, numbers or several labels per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from metalora._util.sending import sent

TargetKind = Literal["classes", "numbers", "multilabel"]


@dataclass(frozen=True)
class Targets:
    """The targets of n examples.

    Attributes:
        kind: "classes": one class per example. "numbers": regression. "multilabel": each label is present or absent.
        matrix: The targets, (n, count): one-hot rows for classes, 0 or 1 for labels, values for numbers.
        count: Number of classes, of labels or of numbers per example.

    Example:
        >>> Targets.classes(torch.tensor([0, 2, 1]), count=3).matrix
        tensor([[1., 0., 0.],
                [0., 0., 1.],
                [0., 1., 0.]])
    """

    kind: TargetKind
    matrix: Tensor
    count: int

    @classmethod
    def classes(cls, codes: Tensor, count: int) -> Targets:
        """Return targets that are classes.

        Args:
            codes: Numbers of the classes, integers from 0 to count - 1, (n,). Each class has at least one example.
            count: Number of classes, at least 2.

        Raises:
            ValueError: The codes are not integers in this range, or a class has no example.

        Example:
            >>> Targets.classes(torch.tensor([0, 1, 1]), count=2).kind
            'classes'
        """
        if codes.ndim != 1 or codes.is_floating_point() or codes.is_complex():
            raise ValueError(f"class codes must be integers of shape (n,), not {codes.dtype} {tuple(codes.shape)}")
        if count < 2:
            raise ValueError(f"a readout of classes needs at least 2 classes, not {count}")
        if count > len(codes):
            raise ValueError(f"there are more classes than examples: {count} classes, {len(codes)} examples")
        known = codes.cpu()  # a GPU that has them is waited for once
        if known.min() < 0 or known.max() >= count:
            raise ValueError(f"class codes must be from 0 to {count - 1}, not {int(known.min())} to {int(known.max())}")
        items = torch.bincount(known, minlength=count)
        if not items.all():
            raise ValueError(f"class {int(items.argmin())} of {count} classes has no example")
        return cls("classes", one_hot(codes.long(), count).float(), count)

    @classmethod
    def numbers(cls, values: Tensor) -> Targets:
        """Return targets that are numbers.

        Args:
            values: The numbers, (n,) or (n, t).

        Raises:
            ValueError: A value is not finite, or the shape is another.

        Example:
            >>> Targets.numbers(torch.tensor([0.5, 2.0])).matrix.shape
            torch.Size([2, 1])
        """
        matrix = values[:, None] if values.ndim == 1 else values
        _check_matrix("numbers", matrix)
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        return cls("numbers", matrix, matrix.shape[1])

    @classmethod
    def multilabel(cls, matrix: Tensor) -> Targets:
        """Return targets that are labels, of which each example has any number.

        Args:
            matrix: 1 (or True) if the example has the label and 0 otherwise, (n, labels).

        Raises:
            ValueError: A value is neither 0 nor 1, or the shape is another.

        Example:
            >>> Targets.multilabel(torch.tensor([[True, False], [True, True]])).count
            2
        """
        _check_matrix("labels", matrix)
        if not ((matrix == 0) | (matrix == 1)).all():
            raise ValueError("labels must be 0 or 1: the matrix has other values")
        return cls("multilabel", matrix.float(), matrix.shape[1])

    @property
    def codes(self) -> Tensor:
        """The number of the class of each example, int64 (n,); only classes have codes."""
        assert self.kind == "classes"
        return self.matrix.argmax(1)

    def to(self, reference: Tensor) -> Targets:
        """Return the targets in the dtype and on the device of another tensor.

        Example:
            >>> Targets.numbers(torch.ones(2)).to(torch.ones(1, dtype=torch.float64)).matrix.dtype
            torch.float64
        """
        return Targets(self.kind, sent(self.matrix, reference.device).to(reference.dtype), self.count)

    def of(self, items: Tensor) -> Targets:
        """Return the targets of some of the examples.

        Args:
            items: Which examples: positions, or a mask (n,). Each class keeps at least one example.

        Example:
            >>> Targets.numbers(torch.tensor([1.0, 2.0, 3.0])).of(torch.tensor([True, False, True])).matrix[:, 0]
            tensor([1., 3.])
        """
        return Targets(self.kind, self.matrix[items], self.count)

    def centred(self) -> Tensor:
        """Return the targets minus their mean, and numbers also divided by their standard deviation, (n, count).

        Example:
            >>> Targets.classes(torch.tensor([0, 1]), count=2).centred()
            tensor([[ 0.5000, -0.5000],
                    [-0.5000,  0.5000]])
        """
        centred = self.matrix - self.matrix.mean(0)
        return centred / self.deviation() if self.kind == "numbers" else centred

    def deviation(self) -> Tensor:
        """Return the standard deviation of each column, (count,); 1 for a column that does not vary.

        Example:
            >>> Targets.numbers(torch.tensor([1.0, 3.0])).deviation()
            tensor([1.])
        """
        varies = self.matrix.amax(0) > self.matrix.amin(0)
        deviation = self.matrix.std(0, correction=0)
        return torch.where(varies & (deviation > 0), deviation, torch.ones_like(deviation))


def _check_matrix(what: str, matrix: Tensor) -> None:
    """Raise a ValueError for a matrix that is not (n, t) or not finite."""
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"{what} must have shape (n, {what}), not {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError(f"{what}: {int((~matrix.isfinite()).sum())} values are NaN or infinite")
