"""How a task is judged: GLUE's metrics, and which evaluation of a run counts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np

from metalora_papers.metatt import glue
from metalora_papers.rows import Row

METRICS = {
    "accuracy": "accuracy", "f1": "F1", "matthews": "Matthews", "spearman": "Spearman", "pearson": "Pearson",
}  # fmt: skip
"""Key in the results of a row -> what headings and axes say."""


def metrics_of(task: str) -> tuple[str, ...]:
    """Return the metrics of a task that a table shows; the first judges it.

    Example:
        >>> metrics_of("stsb"), metrics_of("mrpc"), metrics_of("rte")
        (('spearman', 'pearson'), ('accuracy', 'f1'), ('accuracy',))
    """
    return glue.TASKS[task].metrics if task in glue.TASKS else ("accuracy",)


def measured(predicted: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, float]:
    """Return all metrics of predictions.

    Accuracy of labels; of two of them also F1 of label 1 and Matthews' correlation; of scores (classes = 0) Spearman's
    and Pearson's. F1 without any label 1, and a correlation with constant predictions, are undefined and count as 0.

    Args:
        predicted: Labels or scores (n,).
        answers: The right ones (n,).
        classes: Number of labels, 0 for scores.

    Example:
        >>> measured(np.array([0, 1, 1]), np.array([0, 1, 1]), classes=2)
        {'accuracy': 1.0, 'f1': 1.0, 'matthews': 1.0}
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    if classes:
        found = {"accuracy": float((predicted == answers).mean())}
        if classes == 2:
            found["f1"] = float(f1_score(answers, predicted, zero_division=0))
            found["matthews"] = float(matthews_corrcoef(answers, predicted))
        return found
    if np.ptp(predicted) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    correlations = {"spearman": spearmanr(predicted, answers), "pearson": pearsonr(predicted, answers)}
    return {name: float(correlation.statistic) for name, correlation in correlations.items()}


def judged(evaluation: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """Return the score of each task by the metric that judges it, from metric -> task -> value."""
    return {task: evaluation[metrics_of(task)[0]][task] for task in tasks}


def mean_score(evaluation: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Return the mean over tasks of what judges each."""
    return fmean(judged(evaluation, tasks).values())


def by_metric(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return scores by task as metric -> task -> value: the inverse of `judged`."""
    found: dict[str, dict[str, float]] = {}
    for task, score in scores.items():
        found.setdefault(metrics_of(task)[0], {})[task] = score
    return found


def reported(row: Row, report: Literal["last", "best"]) -> Row:
    """Return the row with the scores of one of its evaluations.

    Args:
        row: A row of a run on text.
        report: The evaluation after the last step, or the one with the best mean over the tasks.

    Raises:
        ValueError: "best" of a run that was trained and was evaluated at its end only.
    """
    if report == "last":
        return row
    results, tasks = row["results"], row["config"]["tasks"]
    if not results["history"] and results["loss"] is not None:
        raise ValueError(
            f"report best: {row['config']['method']!r} has no evaluation before its last step; "
            "run it with evaluate_every"
        )
    best = max((*results["history"], results), key=lambda evaluation: mean_score(evaluation, tasks))
    return {**row, "results": {**results, **{name: best[name] for name in METRICS if name in best}}}
