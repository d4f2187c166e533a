"""A report as one HTML file: methods, tasks, training, calibration, confusions, nearest neighbours, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metalora._util.report_page import (
    Band,
    Cell,
    Html,
    Interval,
    Order,
    Section,
    Series,
    confusion_table,
    fact_table,
    flat_settings,
    interval_cells,
    joined,
    line_chart,
    number_cell,
    paragraph,
    plain_table,
    reliability_chart,
    sortable_table,
    text,
    text_cell,
    write_page,
)
from metalora.config import to_dict
from metalora.learner.evaluation import EpisodeFeatures
from metalora.learner.history import TrainingHistory
from metalora.learner.readouts.calibration import error_of_confidence
from metalora.learner.report import EPISODES, LEARNER, Report, Score, half_interval
from metalora.learner.report_details import Confusion, Details, collect
from metalora.learner.splits import Split

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

MAX_CLASSES = 20  # of a confusion matrix; of a larger one the most frequent confusions are listed
MOST_FREQUENT = 15
LABELS = {True: "never trained", False: "trained", None: "not known"}  # what a learner knows of a task's labels


def write_html(
    learner: MetaLearner,
    split: Split,
    report: Report,
    path: str | Path,
    *,
    title: str = "Evaluation",
    episodes: int = EPISODES,
    features: EpisodeFeatures | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write a report as a page, completely or not at all.

    Args:
        learner: The learner.
        split: What the report was made of: of `split_pools`, or `whole_split` of further pools.
        report: The report.
        path: The file.
        title: Its heading.
        episodes: Episodes of a task, as in the report.
        features: The features that were computed for the report; None: they are computed again.
        facts: What else the page says of the evaluation, such as versions and the commit.

    Raises:
        ValueError: The file could not be written, or is not a page of this library.
    """
    details = collect(learner, split, episodes, features)
    sections = report_sections(report, details, learner.history_, learner_facts(learner) | dict(facts or {}))
    write_page(path, title, report.verdict, sections, _note(report))


def report_sections(
    report: Report, details: Details, history: TrainingHistory, facts: Mapping[str, object]
) -> list[Section]:
    """Return the parts of the page; a part that has nothing to show is left out.

    Args:
        report: The scores.
        details: What else is shown of the episodes.
        history: How the training went.
        facts: Settings and versions.
    """
    sections = [_methods(report), _tasks(report), _training(history), _calibration(details)]
    sections += [_confusions(details.confusions), _neighbours(details), _settings(facts)]
    return [section for section in sections if section.body]


def learner_facts(learner: MetaLearner) -> dict[str, object]:
    """Return what the learner is, and its settings by dotted names.

    Args:
        learner: The learner.
    """
    adapter = learner.adapter
    described = "none" if adapter is None else f"{adapter.method.name}, {adapter.num_params():,} parameters"
    name = learner.backbone.name or type(learner.backbone.model).__name__
    return {"backbone": name, "adapter": described} | flat_settings(to_dict(learner.config))


def _note(report: Report) -> str:
    episodes = max((len(score.accuracies) for score in report.scores), default=0)
    return (
        f"At most {episodes} support sets of each task, of {report.support} labelled examples or fewer; "
        "every method sees the same ones. Accuracies are in per cent, with the 95 % interval over the support sets."
    )


# ---- scores ----------------------------------------------------------------------------------------------------------
def _methods(report: Report) -> Section:
    means = report.means()
    methods = sorted(means, key=means.__getitem__, reverse=True)
    counts = {method: [score for score in report.scores if score.method == method] for method in methods}
    drawn = interval_cells([_mean_interval(counts[method]) for method in methods])
    drawn = _best_marked(drawn)
    kinds = [kind for kind in (False, True) if report.means(kind)] if report.means(True) and report.means(False) else []
    names = {False: "trained tasks", True: "tasks never trained"}
    rows = []
    for method, cell in zip(methods, drawn, strict=True):
        others = [_percent_cell(report.means(kind)[method]) for kind in kinds]
        rows.append([text_cell(method), cell, *others, number_cell(len(counts[method]), str(len(counts[method])))])
    header = ("method", "accuracy", *(names[kind] for kind in kinds), "tasks")
    ours = [methods.index(LEARNER)] if LEARNER in methods else []
    note = "The mean over all tasks. The other methods are what you would use instead, on the frozen network."
    body = sortable_table("Accuracy of the methods", header, rows, Order(1), ours)
    return Section("Methods", note, body if methods else Html(""))


def _mean_interval(scores: Sequence[Score]) -> Interval:
    """Return the mean over tasks, with the interval that follows from those of the tasks."""
    mean = math.fsum(score.mean for score in scores) / len(scores)
    return _interval(mean, math.hypot(*(score.error for score in scores)) / len(scores))


def _interval(mean: float, error: float) -> Interval:
    return Interval(mean, mean - error, mean + error, f"{100 * mean:.1f} ± {100 * error:.1f}")


def _percent_cell(value: float) -> Cell:
    return number_cell(value, f"{100 * value:.1f}")


def _best_marked(cells: Sequence[Cell]) -> list[Cell]:
    best = max((cell.value for cell in cells if cell.value is not None), default=None)
    return [cell.marked("best") if cell.value == best else cell for cell in cells]


def _tasks(report: Report) -> Section:
    tasks = {score.task: score.held_out for score in report.scores}
    peer, means = report.best_peer(), report.means()
    if peer is None:
        return Section("Tasks", "", Html(""))
    by_name = {(score.task, score.method): score for score in report.scores}
    others = sorted((name for name in means if name != LEARNER), key=means.__getitem__, reverse=True)
    methods = [LEARNER, *others]
    gains = interval_cells([_gain(by_name[task, LEARNER], by_name[task, peer]) for task in tasks])
    scores = [by_name[task, method] for task in tasks for method in methods]
    drawn = interval_cells([_interval(score.mean, score.error) for score in scores])
    rows = []
    for number, (task, held_out) in enumerate(tasks.items()):
        cells = _best_marked(drawn[number * len(methods) : (number + 1) * len(methods)])
        rows.append([text_cell(task), text_cell(LABELS[held_out]), cells[0], gains[number]])
        rows[-1] += cells[1:]
    header = ("task", "its labels", LEARNER, f"gain over {peer}", *others)
    note = (
        f"The best of a task is blue. The gain is the difference to {peer}, the best of the other methods, in points, "
        "paired by support set."
    )
    return Section("Tasks", note, sortable_table("Accuracy on each task", header, rows))


def _gain(ours: Score, peer: Score) -> Interval:
    differences = [a - b for a, b in zip(ours.accuracies, peer.accuracies, strict=True)]
    mean, error = math.fsum(differences) / len(differences), half_interval(differences)
    return Interval(mean, mean - error, mean + error, f"{100 * mean:+.1f} ± {100 * error:.1f}")


# ---- training and probabilities --------------------------------------------------------------------------------------
def _training(history: TrainingHistory) -> Section:
    losses = line_chart("Loss over steps", [Series("loss", history.losses)], "steps", "loss in training")
    name = "Accuracy of the validation over steps"
    accuracies = line_chart(name, [Series("accuracy", history.accuracies)], "steps", "accuracy of the validation")
    charts = [chart for chart in (losses, accuracies) if chart]
    note = "The loss is the mean since the point before. The learner is the state with the best validation."
    return Section("Training", note, _side_by_side(charts) if charts else Html(""))


def _calibration(details: Details) -> Section:
    if not len(details.right):
        return Section("Are the probabilities right?", "", Html(""))
    before, now = details.confidence_before, error_of_confidence(details.confidence, details.right)
    sentence = f"Expected calibration error {now:.3f}"
    if before is not None:
        sentence += f"; before the temperature {error_of_confidence(before, details.right):.3f}"
    chart = reliability_chart("Reliability diagram", details.bands, details.bands_before)
    numbers = _band_table("Predictions by probability", details.bands)
    note = (
        "Among the predictions of about the same probability, the share that is right. On the dashed line both are "
        "equal; below it the learner is too sure. The grey bars count the predictions."
    )
    body = joined([paragraph(f"{sentence}.", "result"), _side_by_side([chart, numbers])])
    return Section("Are the probabilities right?", note, body)


def _band_table(caption: str, bands: Sequence[Band]) -> Html:
    rows = [
        [
            text_cell(f"{band.low:.1f} to {band.high:.1f}"),
            number_cell(band.count, str(band.count)),
            number_cell(band.probability, f"{band.probability:.3f}"),
            number_cell(band.right, f"{band.right:.3f}"),
        ]
        for band in bands
        if band.count
    ]
    return sortable_table(caption, ("range", "predictions", "probability", "right"), rows, Order(0, rising=True))


# ---- confusions, neighbours, settings --------------------------------------------------------------------------------
def _confusions(confusions: Mapping[str, Confusion]) -> Section:
    parts = [_titled(task, _confusion(task, confusion)) for task, confusion in confusions.items()]
    note = "All support sets of a task together: rows are true classes, columns are predictions."
    return Section("What is taken for what", note, _side_by_side(parts) if parts else Html(""))


def _confusion(task: str, confusion: Confusion) -> Html:
    if len(confusion.classes) <= MAX_CLASSES:
        return confusion_table(f"Confusion matrix of {task}", confusion.classes, confusion.counts)
    pairs = [
        (count, true, guess)
        for true, row in zip(confusion.classes, confusion.counts, strict=True)
        for guess, count in zip(confusion.classes, row, strict=True)
        if count and true != guess
    ]
    frequent = sorted(pairs, key=lambda pair: -pair[0])[:MOST_FREQUENT]
    rows = [[text_cell(true), text_cell(guess), number_cell(count, str(count))] for count, true, guess in frequent]
    table = sortable_table(f"Confusions of {task}", ("true", "predicted", "predictions"), rows, Order(2))
    return joined([paragraph(f"{len(confusion.classes)} classes; the most frequent confusions."), table])


def _neighbours(details: Details) -> Section:
    parts = []
    for task, rows in details.neighbours.items():
        table = plain_table(f"Neighbours in {task}", ("query", "before", "after"), rows, "neighbours")
        parts.append(_titled(task, table))
    hidden = len(details.confusions) - len(parts)
    if hidden > 0:
        parts.append(paragraph(f"{hidden} further tasks are not shown, which keeps the file small."))
    note = (
        "Before: the last layer of the frozen network. After: the embedding of the task. ✓ has the class of the "
        "query, ✗ (dashed) another one."
    )
    return Section("Nearest labelled examples, before and after", note, joined(parts))


def _titled(title: str, body: Html) -> Html:
    return Html(f"<div><h3>{text(title)}</h3>{body}</div>")


def _side_by_side(parts: Sequence[Html]) -> Html:
    return Html(f'<div class="side">{joined(parts)}</div>')


def _settings(facts: Mapping[str, object]) -> Section:
    return Section("Settings and versions", "", fact_table("Settings and versions", facts))
