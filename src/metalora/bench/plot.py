"""The plot of a bench row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalora._util.files import write_figure
from metalora.bench.cases import FLOOR
from metalora.bench.palette import PALETTE
from metalora.bench.scaling import added_seconds


def plot(row: dict[str, Any], path: Path) -> None:
    """Draw the ratios with their quartiles or, for a scaling run, what each setting adds to a step.

    Args:
        row: A row of `metalora.bench.report.run`.
        path: The PNG file; its folder is made if it does not exist.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure until it is closed

    cases = row["results"]["cases"]
    if row["config"]["what"] == "scaling":
        axes = list(dict.fromkeys(case["axis"] for case in cases))
        figure = Figure(figsize=(3.6 * len(axes), 3.8), layout="constrained")
        panels = figure.subplots(1, len(axes), squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw_growth(panel, axis, row["results"])
    else:
        metrics = [name for name in ("step", "forward", "backward", "cost", "cpu", "wall") if name in cases[0]]
        figure = Figure(figsize=(5.2 * len(metrics), 0.8 + 0.36 * len(cases)), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            _draw_ratios(panel, metric, cases)
    write_figure(figure, path, dpi=150)


def _draw_growth(panel: Any, axis: str, results: dict[str, Any]) -> None:
    """Draw the milliseconds that a case adds to the frozen model's step: measured, and (dashed) by multiply-adds."""
    cases = [case for case in results["cases"] if case["axis"] == axis]
    floors = {case["value"]: case["step_seconds"] for case in cases if case["case"] == FLOOR}
    exponents = {fit["case"]: fit["exponent"] for fit in results["exponents"] if fit["axis"] == axis}
    for colour, ((_, name), measured) in zip(PALETTE, added_seconds(cases).items(), strict=False):
        label = f"{name}: exponent {exponents[name]:.2f}" if name in exponents else name
        values = [value for value, _ in measured]
        panel.plot(values, [1e3 * seconds for _, seconds in measured], "o-", color=colour, label=label)
        predicted = [case["predicted"] for case in cases if case["case"] == name]
        # "predicted" is the ratio of a whole step; what is above 1 is the adapter's.
        expected = [1e3 * floors[value] * (ratio - 1) for value, ratio in zip(values, predicted, strict=True)]
        panel.plot(values, expected, "--", color=colour)
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms added to a step")
    panel.set_xticks(list(floors), [str(value) for value in floors])
    panel.minorticks_off()
    panel.legend(fontsize=7)


def _draw_ratios(panel: Any, metric: str, cases: list[dict[str, Any]]) -> None:
    """Draw a bar per case with its quartiles as whiskers, and a line at the reference."""
    values = [case[metric] for case in cases]
    below = [case[metric] - case[f"{metric}_low"] for case in cases]
    above = [case[f"{metric}_high"] - case[metric] for case in cases]
    panel.barh([case["case"] for case in cases], values, xerr=[below, above], color=PALETTE[0])
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set(xlabel=f"{metric}, as a ratio", xlim=(0.9 * min(values), None))
    panel.invert_yaxis()  # the first case on top
