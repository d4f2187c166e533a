"""One training step and one forward of adapted models, as ratios to the frozen model in the same run."""

from __future__ import annotations

from typing import Any

from metalora.bench import memory
from metalora.bench.cases import FLOOR, PEFT, Case, adapter_config, build_case, build_model, case_names, check_names
from metalora.bench.config import BenchConfig
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
    """Time a training step and a forward of each case, as ratios to the frozen model.

    Returns:
        One row per case: the two ratios with their quartiles, their seconds, learned numbers, bytes of the adapter
        file, and the seconds that attaching needs.

    Raises:
        ValueError: A method or a tuner of PEFT is not known.
    """
    check_names(config)
    base, inputs = build_model(config)
    cases = {name: build_case(name, base, inputs, config) for name in case_names(config)}
    # All cases are in memory at once, so that their rounds can take turns.
    step_times = interleaved({name: case.step for name, case in cases.items()}, config.rounds)
    forward_times = interleaved({name: case.forward for name, case in cases.items()}, config.rounds)
    rows = []
    for name, case in cases.items():
        is_metalora = name != FLOOR and not name.startswith(PEFT)
        file_bytes = summarise(base, adapter_config(name, config)).bytes if is_metalora else None
        step, forward = ratio(step_times, name, FLOOR), ratio(forward_times, name, FLOOR)
        rows.append(_row(name, case, step, forward, file_bytes))
    return rows


def _row(name: str, case: Case, step: Ratio, forward: Ratio, file_bytes: int | None) -> dict[str, Any]:
    return {
        "case": name,
        "step": step.median,
        "step_low": step.low,
        "step_high": step.high,
        "step_seconds": step.seconds,
        "forward": forward.median,
        "forward_low": forward.low,
        "forward_high": forward.high,
        "forward_seconds": forward.seconds,
        "num_params": sum(parameter.numel() for parameter in case.learned),
        "attach_seconds": case.attach_seconds,
        "file_bytes": file_bytes,
    }
