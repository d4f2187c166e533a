"""Angles from disjoint arcs that repeat around the circle, so that train, val and test never share one."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AngleRanges:
    """Disjoint arcs [start, end) in degrees within one period, repeated `turns` times from `first` on."""

    bounds: tuple[tuple[float, float], ...]
    period: float
    turns: int
    first: float = 0.0

    def sample(self, generator: torch.Generator) -> float:
        """Draw an angle in degrees, uniform over the arcs of every period."""
        turn = int(torch.randint(self.turns, (), generator=generator))
        spot = float(torch.rand((), generator=generator, dtype=torch.float64))
        rest = spot * sum(end - start for start, end in self.bounds)
        for start, end in self.bounds:
            if rest < end - start:
                return self.first + turn * self.period + start + rest
            rest -= end - start
        raise AssertionError("a draw in [0, 1) lies in some arc")

    def contains(self, degrees: float) -> bool:
        """Whether an angle lies in one of the arcs."""
        spot = (degrees - self.first) % self.period
        return any(start <= spot < end or start <= spot - self.period < end for start, end in self.bounds)
