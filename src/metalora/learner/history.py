"""How a training went: its losses and the accuracies of its validations, by the number of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

POINTS = 200  # of the curve of the losses
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrainingHistory:
    """How a training went.

    Attributes:
        losses: Number of steps and the mean loss since the point before, at most 200 points.
        accuracies: Number of steps and the accuracy of the validation at this step.
    """

    losses: Curve = ()
    accuracies: Curve = ()

    @classmethod
    def of(cls, losses: Sequence[float], accuracies: Mapping[int, float]) -> TrainingHistory:
        """Return the history of a training.

        Args:
            losses: The loss of every step.
            accuracies: Number of steps -> accuracy of a validation.

        Example:
            >>> TrainingHistory.of([3.0, 1.0], {2: 0.75})
            TrainingHistory(losses=((1, 3.0), (2, 1.0)), accuracies=((2, 0.75),))
            >>> len(TrainingHistory.of([1.0] * 1000, {}).losses)
            200
        """
        size = -(-len(losses) // POINTS) or 1
        parts = [losses[start : start + size] for start in range(0, len(losses), size)]
        ends = [min(len(losses), (number + 1) * size) for number in range(len(parts))]
        means = tuple((end, round(fmean(part), 6)) for end, part in zip(ends, parts, strict=True))
        return cls(means, tuple((step, round(value, 6)) for step, value in sorted(accuracies.items())))

    def to_dict(self) -> dict[str, Any]:
        """Return the history as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingHistory:
        """Make a history of what `to_dict` returned.

        Raises:
            ValueError: A point is not a number of steps and a value.
        """
        return cls(_curve(values["losses"]), _curve(values["accuracies"]))


def _curve(points: Sequence[Sequence[Any]]) -> Curve:
    return tuple((int(step), float(value)) for step, value in points)
