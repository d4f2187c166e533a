"""Times and peak memory of cases on the device, interleaved, within a budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from metalora.bench.cases import FLOOR, Case
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.phases import Phases
from metalora.bench.timing import ratio

WARM = 2  # rounds that do not count: the optimiser makes its moments, the libraries choose their kernels


@dataclass
class Measurements:
    """What was measured of one or several cases.

    Attributes:
        seconds: Case -> phase -> seconds, one number per round.
        errors: Case -> why it was not measured.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, phases: Phases) -> None:
        """Add a round of a case."""
        seconds_of_case = self.seconds.setdefault(case, {})
        for phase, seconds in phases.items():
            seconds_of_case.setdefault(phase, []).append(seconds)

    def fail(self, case: str, error: Exception) -> None:
        """Forget the rounds of a case that failed."""
        self.seconds.pop(case, None)  # a case that fails later than others has rounds already
        self.errors[case] = describe_error(error)

    def rows(self, reference: str = FLOOR) -> list[dict[str, Any]]:
        """One row per case: the median of each phase, and its ratio to the reference with quartiles."""
        rows: list[dict[str, Any]] = [self._row(case, reference) for case in self.seconds]
        return rows + [{"case": case, "error": error} for case, error in self.errors.items()]

    def _row(self, case: str, reference: str) -> dict[str, Any]:
        phases = self.seconds[case]
        row: dict[str, Any] = {"case": case, "rounds": len(next(iter(phases.values())))}
        for phase, seconds in phases.items():
            row[f"{phase}_seconds"] = statistics.median(seconds)
            if reference in self.seconds:
                rounds = min(len(of_case[phase]) for of_case in (phases, self.seconds[reference]))
                times = {name: self.seconds[name][phase][:rounds] for name in (case, reference)}
                against = ratio(times, case, reference)
                row |= {phase: against.median, f"{phase}_low": against.low, f"{phase}_high": against.high}
        return row


def build_all(
    names: Iterable[str], build: Callable[[str], Case], budget: Budget
) -> tuple[dict[str, Case], dict[str, str]]:
    """Build cases one after another; a case that cannot be built does not lose the others.

    Returns:
        The cases, and the errors of those that could not be built.
    """
    cases, errors = {}, {}
    for name in names:
        budget.check()
        try:
            cases[name] = build(name)
        except OutOfTime:
            raise
        except Exception as error:
            errors[name] = describe_error(error)
    return cases, errors


def measure(cases: Mapping[str, Callable[[], Phases]], rounds: int, budget: Budget, warm: int = WARM) -> Measurements:
    """Measure the cases in turns, until the rounds are done or another round does not fit into the budget.

    Args:
        cases: Name -> function that runs the case once and returns the seconds of its phases.
        rounds: Largest number of rounds that count.
        budget: The time budget; a round that is interrupted does not count.
        warm: Number of rounds before them that do not count.

    Raises:
        OutOfTime: The budget was used up before the end of the first round that counts.
    """
    result, running = Measurements(), dict(cases)
    for number in range(warm + rounds):
        start = time.monotonic()
        try:
            budget.check()
            of_round = _one_round(running, result)
        except OutOfTime:
            if number > warm:
                break
            raise
        if number >= warm:
            for name, phases in of_round.items():
                result.add(name, phases)
            if budget.remaining < time.monotonic() - start:
                break
    return result


def _one_round(running: dict[str, Callable[[], Phases]], result: Measurements) -> dict[str, Phases]:
    """Run each case once; one that fails is not run again."""
    of_round = {}
    for name in list(running):
        try:
            of_round[name] = running[name]()
        except OutOfTime:
            raise
        except Exception as error:
            del running[name]
            result.fail(name, error)
    return of_round


def step_peak_bytes(case: Case) -> int | None:
    """The most memory that a training step allocates beyond what is allocated before it; None without a card."""
    if not torch.cuda.is_available():
        return None
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    case.step()
    return torch.cuda.max_memory_allocated() - before


def describe_error(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
