"""Ranges of numbers, which fields and arguments declare in their annotations."""

import math
from dataclasses import dataclass
from typing import Any

from metalora._util.shown import shown

LARGEST = 3.4e38
"""Of a real number: a larger one is infinite in single precision, in which adapters compute."""


@dataclass(frozen=True)
class Range:
    """The finite numbers between two bounds; with no bound, all of them. Single precision must hold a real number.

    Attributes:
        least: The smallest number.
        most: The largest number.
        above: All numbers are larger than this one.
        below: All numbers are smaller than this one.

    Example:
        >>> str(Range(above=0, most=1)), 1 in Range(above=0, most=1), float("nan") in Range()
        ('more than 0 and at most 1', True, False)
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (not isinstance(value, float) or abs(value) <= LARGEST)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.least, "more than": self.above, "at most": self.most, "below": self.below}
        words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(words) or "a finite number"

    def check(self, value: Any, place: str) -> None:
        """Check all numbers of a value; texts, None and truth values are not numbers.

        Args:
            value: A number, or a list or a mapping with numbers.
            place: What the message calls the value, such as the path of a field.

        Raises:
            ValueError: A number is out of the range.

        Example:
            >>> Range(least=1).check({"query": 0}, "ranks")
            Traceback (most recent call last):
            ValueError: ranks.query is 0, expected at least 1
        """
        if isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self.check(item, f"{place}[{index}]")
        elif isinstance(value, dict):
            for key, item in value.items():
                self.check(item, f"{place}.{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value not in self:
            too_large = isinstance(value, float) and LARGEST < abs(value) < math.inf
            limit = f", of a magnitude of at most {LARGEST}" if too_large else ""
            raise ValueError(f"{place} is {shown(value)}, expected {self}{limit}")


PROBABILITY = Range(least=0, most=1)
SEED = Range(least=0, most=2**63 - 1)
"""What the generators of PyTorch and of NumPy both take."""
