"""Interleaved timing: every case once a round, so that what disturbs the machine disturbs all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """The cost of a case beside that of another: the median over rounds, and the quartiles."""

    name: str
    reference: str
    median: float
    low: float
    high: float
    seconds: float
    """median of the case itself"""


def interleaved(
    cases: Mapping[str, Callable[..., object]], rounds: int, warm: int = 2, fresh: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Seconds of every case in every round; the first `warm` rounds are not counted. ValueError: rounds below 1.

    fresh  makes what every case gets anew, each time; its own time is not counted
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    found: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(warm + rounds):
        for name, run in cases.items():
            given = () if fresh is None else (fresh(),)
            start = time.perf_counter()
            run(*given)
            if k >= warm:
                found[name].append(time.perf_counter() - start)
    return found


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> Ratio:
    """A case against its reference, round by round."""
    found = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    low, _, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return Ratio(name, reference, statistics.median(found), low, high, statistics.median(times[name]))
