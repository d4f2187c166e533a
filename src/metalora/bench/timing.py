"""Interleaved timing: a round runs each case once, so that a disturbance of the machine disturbs all cases alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """The time of a case divided by the time of a reference, over the rounds.

    Attributes:
        name: The case.
        reference: The case that it is compared with.
        median: Median ratio.
        low: First quartile of the ratio.
        high: Third quartile of the ratio.
        seconds: Median time of the case itself.
    """

    name: str
    reference: str
    median: float
    low: float
    high: float
    seconds: float


def interleaved(
    cases: Mapping[str, Callable[..., object]], rounds: int, warm: int = 2, fresh: Callable[[], Any] | None = None
) -> dict[str, list[float]]:
    """Time the cases in turns.

    Args:
        cases: Name -> function to time.
        rounds: Number of rounds that count.
        warm: Number of rounds before them that do not count.
        fresh: Makes the argument of each call, for example a new model; its time does not count. None: the
            functions take no argument.

    Returns:
        Name -> seconds, one number per round.

    Raises:
        ValueError: `rounds` is below 1.

    Example:
        >>> times = interleaved({"sum": lambda: sum(range(10)), "nothing": lambda: None}, rounds=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'sum': 3, 'nothing': 3}
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warm + rounds):
        for name, run in cases.items():
            arguments = () if fresh is None else (fresh(),)  # before the clock starts
            start = time.perf_counter()
            run(*arguments)
            seconds = time.perf_counter() - start
            if number >= warm:
                times[name].append(seconds)
    return times


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> Ratio:
    """Divide the times of a case by those of its reference, round by round.

    Example:
        >>> ratio({"a": [2.0, 4.0], "b": [1.0, 1.0]}, "a", "b").median
        3.0
    """
    pairs = zip(times[name], times[reference], strict=True)
    # Not the ratio of two medians: a slow round is slow for both, so that its ratio is still a good one.
    ratios = [seconds / reference_seconds for seconds, reference_seconds in pairs]
    low, high = quartiles(ratios)
    return Ratio(name, reference, statistics.median(ratios), low, high, statistics.median(times[name]))


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile; of a single value, the value itself."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
