"""Angles from disjoint ranges that repeat around the circle, so that train, val and test never share one."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AngleRanges:
    """Disjoint ranges [start, end) of angles within one period, repeated around the circle.

    Attributes:
        bounds: Start and end of each range, in degrees from the beginning of a period.
        period: Length of a period in degrees.
        turns: Number of periods.
        first: Where the first period begins, in degrees.
    """

    bounds: tuple[tuple[float, float], ...]
    period: float
    turns: int
    first: float = 0.0

    def sample(self, generator: torch.Generator) -> float:
        """Draw an angle in degrees, uniform over the ranges of every period."""
        turn = int(torch.randint(self.turns, (), generator=generator))
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        remainder = share * sum(end - start for start, end in self.bounds)
        for start, end in self.bounds:
            if remainder < end - start:
                return self.first + turn * self.period + start + remainder
            remainder -= end - start
        raise AssertionError("a share in [0, 1) lies in one of the ranges")
