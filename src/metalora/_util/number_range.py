"""Ranges of numbers, which fields and arguments declare in their annotations."""

import math
from dataclasses import dataclass
from typing import Any

from metalora._util.shown import shown

LARGEST = 3.4e38
"""Of a real number: a larger one is infinite in single precision, in which adapters compute."""

LARGEST_INTEGER = 2**63 - 1
"""Of a whole number: a larger one is in no tensor."""


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
            abs(value) <= (LARGEST if isinstance(value, float) else LARGEST_INTEGER)
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
            largest = LARGEST if isinstance(value, float) else LARGEST_INTEGER
            limit = f", of a magnitude of at most {largest}" if largest < abs(value) < math.inf else ""
            raise ValueError(f"{place} is {shown(value)}, expected {self}{limit}")


@dataclass(frozen=True)
class Items:
    """What a field with several things must hold: at least so many, and none of them twice.

    Attributes:
        least: The smallest number of items.
        may_repeat: Whether an item may be there twice.

    Example:
        >>> Items(least=1).check((), "tasks")
        Traceback (most recent call last):
        ValueError: tasks is empty, expected at least 1 item
    """

    least: int = 1
    may_repeat: bool = False

    def check(self, value: Any, place: str) -> None:
        """Check a list or a mapping; a single text or number is one item, if it is not empty.

        Args:
            value: The value of the field.
            place: What the message calls the value.

        Raises:
            ValueError: There are too few items, or one is there twice.
        """
        if value is None or isinstance(value, (int, float)):
            return
        if len(value) < self.least:
            said = f"is {shown(value)}" if value else "is empty"
            raise ValueError(f"{place} {said}, expected at least {self.least} item{'s' if self.least > 1 else ''}")
        if isinstance(value, (tuple, list)) and not self.may_repeat:
            for index, item in enumerate(value):
                if item in value[:index]:
                    raise ValueError(f"{place}[{index}] is {shown(item)}, which is there twice")


PROBABILITY = Range(least=0, most=1)
SEED = Range(least=0, most=LARGEST_INTEGER)
"""What the generators of PyTorch and of NumPy both take."""
