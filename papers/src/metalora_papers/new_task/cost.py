"""What a piece of work costs: wall time, CPU time, and joules where the processor counts them (RAPL)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from metalora.bench.device import synchronize

POWERCAP = Path("/sys/class/powercap")
PACKAGE_NAME = re.compile(r"intel-rapl:\d+")  # a processor; "intel-rapl:0:1" is a part of one
Value = TypeVar("Value")


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of all threads of this process.
        joules: Energy of all processors of the machine; None if it cannot be read.
    """

    seconds: float
    cpu_seconds: float
    joules: float | None


def measured(work: Callable[[], Value]) -> tuple[Value, Cost]:
    """Do a piece of work, and wait until a card has finished its share of it.

    Args:
        work: The work.

    Returns:
        What it returned, and what it took.

    Example:
        >>> value, cost = measured(lambda: sum(range(10)))
        >>> value, cost.seconds >= 0
        (45, True)
    """
    synchronize()
    energy = energy_counters()
    started, cpu_started = time.perf_counter(), time.process_time()
    value = work()
    synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return value, Cost(seconds, cpu_seconds, joules_between(energy, energy_counters()))


@dataclass(frozen=True)
class EnergyCounter:
    """The counter of a processor, in microjoules; it starts again from zero after `largest`."""

    value: int
    largest: int


def energy_counters(folder: Path = POWERCAP) -> dict[str, EnergyCounter]:
    """Return the counters of all processors; empty if there are none, or if this user may not read them.

    Args:
        folder: The folder of the kernel's power capping.
    """
    try:
        return {place.name: _counter(place) for place in folder.iterdir() if PACKAGE_NAME.fullmatch(place.name)}
    except (OSError, ValueError):
        return {}


def _counter(place: Path) -> EnergyCounter:
    return EnergyCounter(
        int((place / "energy_uj").read_text()),
        int((place / "max_energy_range_uj").read_text()),
    )


def joules_between(before: dict[str, EnergyCounter], after: dict[str, EnergyCounter]) -> float | None:
    """Return the energy between two readings, in joules; None if a counter could not be read.

    Args:
        before: The counters at the start.
        after: The counters at the end.

    Example:
        >>> joules_between({"a": EnergyCounter(900_000, 1_000_000)}, {"a": EnergyCounter(400_000, 1_000_000)})
        0.5
    """
    if not before or before.keys() != after.keys():
        return None
    microjoules = 0
    for name, start in before.items():
        difference = after[name].value - start.value
        microjoules += difference if difference >= 0 else difference + start.largest
    return microjoules / 1e6
