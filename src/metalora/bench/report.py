"""A bench as a result row, and its plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from metalora.bench import tasks
from metalora.bench.config import BenchConfig
from metalora.bench.memory import keep_freed
from metalora.bench.palette import PALETTE
from metalora.bench.scaling import added_seconds, scaling
from metalora.bench.steps import FLOOR, steps
from metalora.bench.store import RowStore, make_row
from metalora.bench.timing import Ratio
from metalora.config import to_dict


def _attaching(config: BenchConfig) -> list[Ratio]:
    from metalora.bench.attaching import attaching  # it needs PEFT

    return attaching(config)


def _tasks(config: BenchConfig) -> list[Ratio]:
    return tasks.tasks_in_a_batch(config.rounds, config.batch, config.tokens, config.rank)


def _of_tasks(config: BenchConfig) -> BenchConfig:
    """The configuration that is timed for tasks; ValueError where another is asked for."""
    taken = {name: getattr(config, name) for name in ("rank", "rounds", "keep_memory")}
    if config != BenchConfig(**taken):
        raise ValueError(f"bench: --what tasks has a batch and a model of its own and takes only {', '.join(taken)}")
    own = dict(methods=(tasks.METHOD,), targets=tasks.TARGETS, tasks=tasks.BATCH)
    return BenchConfig(**taken, **own, batch=tasks.BATCH, tokens=tasks.TOKENS)


RATIOS = {"tasks": _tasks, "attach": _attaching}


def run(config: BenchConfig, what: str, out: Path | None) -> dict[str, Any]:
    """Time what is asked for: a row with the configuration, the environment and every case; appended to `out`."""
    start = time.monotonic()
    config = _of_tasks(config) if what == "tasks" else config
    if config.keep_memory:
        keep_freed()
    results: dict[str, Any] = {}
    if what == "scaling":
        results["cases"], results["exponents"] = scaling(config)
    else:
        results["cases"] = steps(config) if what == "steps" else _costs(RATIOS[what](config))
    row = make_row(
        key=f"{what}-{time.time_ns()}", suite="bench", config={"what": what, **to_dict(config)}, seed=0,
        results=results, seconds=time.monotonic() - start,
    )  # fmt: skip
    if out is not None:
        RowStore(out).append(row)
    return row


def _costs(found: list[Ratio]) -> list[dict[str, Any]]:
    return [
        {"case": one.name, "reference": one.reference, "cost": one.median, "cost_low": one.low, "cost_high": one.high,
         "seconds": one.seconds}
        for one in found
    ]  # fmt: skip


def plot(row: dict[str, Any], path: Path) -> None:
    """Draw a bench from its row: the ratios with their quartiles, or what each setting adds to a step."""
    from matplotlib.figure import Figure

    cases = row["results"]["cases"]
    if row["config"]["what"] == "scaling":
        axes = list(dict.fromkeys(one["axis"] for one in cases))
        figure = Figure(figsize=(3.6 * len(axes), 3.8), layout="constrained")
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            _growth(panel, axis, row["results"])
    else:
        metrics = [name for name in ("step", "forward", "cost") if name in cases[0]]
        figure = Figure(figsize=(5.2 * len(metrics), 0.8 + 0.36 * len(cases)), layout="constrained")
        for panel, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            _ratios(panel, metric, cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _growth(panel: Any, axis: str, results: dict[str, Any]) -> None:
    """Milliseconds that a case adds to the frozen model's step, measured and (dashed) by multiply-adds."""
    own = [one for one in results["cases"] if one["axis"] == axis]
    floors = {one["value"]: one["step_seconds"] for one in own if one["case"] == FLOOR}
    exponents = {one["case"]: one["exponent"] for one in results["exponents"] if one["axis"] == axis}
    for colour, ((_, name), found) in zip(PALETTE, added_seconds(own).items(), strict=False):
        values, seconds = zip(*found, strict=True)
        label = f"{name}: exponent {exponents[name]:.2f}" if name in exponents else name
        panel.plot(values, [1e3 * one for one in seconds], "o-", color=colour, label=label)
        expected = [1e3 * floors[one["value"]] * (one["predicted"] - 1) for one in own if one["case"] == name]
        panel.plot(values, expected, "--", color=colour)
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms added to a step")
    panel.set_xticks(list(floors), [str(value) for value in floors])
    panel.minorticks_off()
    panel.legend(fontsize=7)


def _ratios(panel: Any, metric: str, cases: list[dict[str, Any]]) -> None:
    """A bar for every case, its quartiles as whiskers, and a line at the reference."""
    values = [one[metric] for one in cases]
    ends = [
        [one[metric] - one[f"{metric}_low"] for one in cases],
        [one[f"{metric}_high"] - one[metric] for one in cases],
    ]
    panel.barh([one["case"] for one in cases], values, xerr=ends, color=PALETTE[0])
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set(xlabel=f"{metric}, as a ratio", xlim=(0.9 * min(values), None))
    panel.invert_yaxis()
