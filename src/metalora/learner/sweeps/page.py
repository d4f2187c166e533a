"""The page of a search: its verdict, its trials as charts and as a table, and the settings that it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from metalora._util.report_page import (
    Cell,
    Group,
    Html,
    Interval,
    Mark,
    Order,
    Section,
    Series,
    fact_table,
    flat_settings,
    grouped_chart,
    interval_cells,
    joined,
    line_chart,
    number_cell,
    paragraph,
    sortable_table,
    text_cell,
    write_page,
)
from metalora.learner.report import half_interval
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.space import Space
from metalora.learner.sweeps.trials import TrialRow

ACCURACY = "accuracy of the validation"
PRUNED, COMPLETE, FIRST, BEST = "quiet hollow", "series-2", "series-1", "series-0"  # how the groups of trials look


def write_sweep_page(path: Path, result: SweepResult, space: Space, facts: Mapping[str, object]) -> None:
    """Write the page of a search, completely or not at all.

    Args:
        path: The file.
        result: The result.
        space: What was chosen from.
        facts: What else the page says.
    """
    sections = [_test(result), _progress(result), _settings_and_accuracy(result), _table(result), _facts(result, facts)]
    if space.left_out:
        sections.insert(-1, _left_out(space))
    title = f"Search over method, rank, rate and targets: {result.verb}"
    note = "Trials are compared by their validations alone; the test has inputs that no trial has seen."
    write_page(path, title, result.verdict, [section for section in sections if section.body], note)


# ---- the test --------------------------------------------------------------------------------------------------------
def _test(result: SweepResult) -> Section:
    named = {"best trial": result.best_scores, "without a search": result.first_scores}
    shown = {name: scores for name, scores in named.items() if scores}
    intervals = interval_cells([_interval(scores) for scores in shown.values()])
    rows = [
        [text_cell(name), cell, number_cell(len(scores), str(len(scores)))]
        for (name, scores), cell in zip(shown.items(), intervals, strict=True)
    ]
    body = sortable_table("Accuracy in the test", ("settings", "accuracy", result.unit), rows) if rows else Html("")
    note = f"Accuracy in per cent with its 95 % interval, on {result.unit} that no trial has seen."
    return Section("The best trial and the settings without a search", note, body)


def _interval(scores: Sequence[float]) -> Interval:
    mean, error = math.fsum(scores) / len(scores), half_interval(scores)
    return Interval(mean, mean - error, mean + error, f"{100 * mean:.1f} ± {100 * error:.1f}")


# ---- charts ----------------------------------------------------------------------------------------------------------
def _progress(result: SweepResult) -> Section:
    scored = [row for row in result.trials if row.accuracy is not None]
    points = grouped_chart(
        "Accuracy of each trial", _groups(result, lambda row: (row.number, row.accuracy or 0.0)), "trial", ACCURACY
    )
    complete = [row for row in scored if row.state == "complete"]
    best_yet = accumulate((row.accuracy or 0.0 for row in complete), max)
    series = Series("best", list(zip((row.number for row in complete), best_yet, strict=True)))
    line = line_chart("Best accuracy so far", [series], "trial", "best accuracy so far")
    curves = grouped_chart("Validations of each trial", _curves(result), "steps", ACCURACY)
    note = "A pruned trial was stopped, since its validations were behind those of the best third of the trials."
    return Section("Trials", note, _side_by_side([points, line, curves]))


def _groups(result: SweepResult, place: Callable[[TrialRow], tuple[float, float]]) -> list[Group]:
    """Return the trials with an accuracy as points, those without a search and the best one over the others."""
    return _grouped(result, lambda row: [place(row)])


def _curves(result: SweepResult) -> list[Group]:
    return _grouped(result, lambda row: list(row.curve))


def _grouped(result: SweepResult, places: Callable[[TrialRow], list[tuple[float, float]]]) -> list[Group]:
    rows = [row for row in result.trials if row.curve]
    best = -1 if result.best is None else result.best.number
    kinds = {
        ("pruned", PRUNED): [row for row in rows if row.state == "pruned"],
        ("failed", "quiet"): [row for row in rows if row.state == "failed"],
        ("complete", COMPLETE): [row for row in rows if row.state == "complete" and row.number != best],
        ("without a search", FIRST): [row for row in rows if row.is_first],
        ("best", BEST): [row for row in rows if row.number == best],
    }
    return [
        Group(name, kind, [Mark(places(row), _tip(row)) for row in chosen]) for (name, kind), chosen in kinds.items()
    ]


def _tip(row: TrialRow) -> str:
    choice = row.choice
    settings = [choice.method, *([] if choice.rank is None else [f"rank {choice.rank}", f"{choice.targets}"])]
    return f"trial {row.number}: {', '.join(settings)}, rate {choice.lr:.2g}; {100 * (row.accuracy or 0):.1f} %"


def _settings_and_accuracy(result: SweepResult) -> Section:
    rows = [row for row in result.trials if row.curve]
    charts = [
        _by_name(result, "method", lambda row: row.choice.method),
        _by_name(result, "targets", lambda row: row.choice.targets or "none"),
        _by_name(result, "rank", lambda row: "none" if row.choice.rank is None else str(row.choice.rank)),
        grouped_chart(
            "Accuracy by learning rate",
            _groups(result, lambda row: (row.choice.lr, row.accuracy or 0.0)),
            "learning rate",
            ACCURACY,
            log_x=True,
        ),
        grouped_chart(
            "Accuracy by trained numbers",
            [_with_parameters(group) for group in _groups(result, _parameters_and_accuracy)],
            "trained numbers",
            ACCURACY,
            log_x=True,
        ),
    ]
    note = "Each point is a trial. A setting matters if some of its values have higher points than others."
    return Section("Settings and accuracy", note, _side_by_side(charts) if rows else Html(""))


def _by_name(result: SweepResult, setting: str, name_of: Callable[[TrialRow], str]) -> Html:
    names = list(dict.fromkeys(name_of(row) for row in result.trials if row.curve))
    if setting == "rank":
        names.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
    groups = _groups(result, lambda row: (names.index(name_of(row)), row.accuracy or 0.0))
    return grouped_chart(f"Accuracy by {setting}", groups, setting, ACCURACY, names=names)


def _parameters_and_accuracy(row: TrialRow) -> tuple[float, float]:
    return row.parameters or 0, row.accuracy or 0.0


def _with_parameters(group: Group) -> Group:
    """Return the marks of the trials that were completed, since the others do not know their numbers."""
    return Group(group.name, group.kind, [mark for mark in group.marks if mark.points[0][0]])


def _side_by_side(charts: Sequence[Html]) -> Html:
    return Html(f'<div class="side">{joined(charts)}</div>')


# ---- tables ----------------------------------------------------------------------------------------------------------
def _table(result: SweepResult) -> Section:
    if not result.trials:
        return Section("All trials", "", Html(""))
    settings, results = ("method", "rank", "targets", "rate"), ("accuracy", "steps", "numbers", "seconds", "reason")
    best = [place for place, row in enumerate(result.trials) if result.best is not None and row == result.best]
    rows = [_cells(row) for row in result.trials]
    note = "The accuracy is the best one of the validation. The row of the best trial is emphasised."
    body = sortable_table("All trials", ("trial", "state", *settings, *results), rows, Order(0, rising=True), best)
    return Section("All trials", note, body)


def _cells(row: TrialRow) -> list[Cell]:
    choice = row.choice
    return [
        number_cell(row.number, str(row.number)),
        text_cell(row.state),
        text_cell(choice.method),
        _number(choice.rank, "{}"),
        text_cell(choice.targets or ""),
        _number(choice.lr, "{:.2g}"),
        _number(row.accuracy, "{:.4f}"),
        _number(row.steps, "{}"),
        _number(row.parameters, "{:,}"),
        _number(row.seconds, "{:.1f}"),
        text_cell(row.reason),
    ]


def _number(value: float | None, form: str) -> Cell:
    return number_cell(math.nan, "") if value is None else number_cell(value, form.format(value))


def _left_out(space: Space) -> Section:
    body = joined(paragraph(f"{name}: {reason}") for name, reason in space.left_out.items())
    return Section("What does not fit the network", "These were not tried.", body)


def _facts(result: SweepResult, facts: Mapping[str, object]) -> Section:
    named = {name: value for name, value in facts.items() if value} | flat_settings(result.settings)
    return Section("Settings of the best trial, and versions", "", fact_table("Settings and versions", named))
