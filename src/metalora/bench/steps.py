"""A training step, its backward and a forward of adapted models, as ratios to the frozen model in the same run."""

from __future__ import annotations

from typing import Any

from metalora.bench import memory
from metalora.bench.cases import (
    FLOOR,
    PEFT,
    adapter_config,
    build_case,
    build_model,
    case_names,
    check_names,
    rank_of,
)
from metalora.bench.config import BenchConfig
from metalora.bench.phases import phases_in_turns
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.cost import summarise


def steps(config: BenchConfig) -> list[dict[str, Any]]:
    """Time all cases and measure the peak memory of a step.

    Returns:
        The rows of `time_cases`, each with "peak_mb".
    """
    rows = time_cases(config)
    return [{**row, "peak_mb": memory.peak_bytes(config, row["case"]) / 2**20} for row in rows]


def time_cases(config: BenchConfig) -> list[dict[str, Any]]:
    """Time a training step, its backward, and a forward of each case, as ratios to the frozen model.

    Returns:
        One row per case: its rank, the three ratios with their quartiles, their seconds, learned numbers, bytes of the
        adapter file, and the seconds that attaching needs. "forward" is inference, which records no graph.

    Raises:
        ValueError: A method, a tuner of PEFT or a name in `ranks` is not known.
    """
    check_names(config)
    base, inputs = build_model(config)
    cases = {name: build_case(name, base, inputs, config) for name in case_names(config)}
    # All cases are in memory at once, so that their rounds can take turns.
    phases = phases_in_turns(cases, config.rounds)
    forward_times = interleaved({name: case.forward for name, case in cases.items()}, config.rounds)
    times = {"step": phases["step"], "forward": forward_times, "backward": phases["backward"]}
    rows = []
    for name, case in cases.items():
        is_metalora = name != FLOOR and not name.startswith(PEFT)
        row: dict[str, Any] = {"case": name, "rank": None if name == FLOOR else rank_of(name, config)}
        for measured, seconds in times.items():
            row |= _ratio_columns(measured, ratio(seconds, name, FLOOR))
        row["num_params"] = sum(parameter.numel() for parameter in case.learned)
        row["attach_seconds"] = case.attach_seconds
        row["file_bytes"] = summarise(base, adapter_config(name, config)).bytes if is_metalora else None
        rows.append(row)
    return rows


def _ratio_columns(measured: str, times: Ratio) -> dict[str, float]:
    return {
        measured: times.median,
        f"{measured}_low": times.low,
        f"{measured}_high": times.high,
        f"{measured}_seconds": times.seconds,
    }
