"""Differences of methods on the same episodes, with intervals over seeds and episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from metalora_papers.report import Difference, Table
from metalora_papers.rows import Row
from metalora_papers.statistics import bootstrap_interval

Episodes = dict[int, list[float]]
"""Accuracies of the episodes, by seed."""


def paired_difference(rows: Sequence[Row], metric: str, treatment: str, references: Sequence[str]) -> Difference | None:
    """Compare a method with the best of some others, which is chosen by its mean on the shared episodes.

    Args:
        rows: Rows of `metalora_papers.learner.scores.method_rows`.
        metric: A key of their "by_episode".
        treatment: The method that is measured.
        references: The others.

    Returns:
        The comparison; None if no reference shares an episode with the treatment.
    """
    treated = _episodes(rows, metric, treatment)
    pairs = {name: _pairs(treated, _episodes(rows, metric, name)) for name in references if name != treatment}
    pairs = {name: seeds for name, seeds in pairs.items() if seeds}
    if not pairs:
        return None
    best = max(pairs, key=lambda name: _reference_mean(pairs[name]))
    differences = [[ours - theirs for ours, theirs in seed] for seed in pairs[best]]
    interval = bootstrap_interval(differences)
    low, high = (None if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    count = sum(map(len, differences))
    return Difference(metric, treatment, best, interval.mean, low, high, len(differences), count)


def _episodes(rows: Sequence[Row], metric: str, method: str) -> Episodes:
    own_rows = [row for row in rows if row["config"]["method"] == method]
    values = {row["seed"]: row["results"].get("by_episode", {}).get(metric) for row in own_rows}
    return {seed: accuracies for seed, accuracies in values.items() if accuracies}


def _pairs(treated: Episodes, reference: Episodes) -> list[list[tuple[float, float]]]:
    """Return by seed the accuracies of both on the episodes that both have; the first ones, if one has fewer."""
    shared = sorted(treated.keys() & reference.keys())
    return [list(zip(treated[seed], reference[seed], strict=False)) for seed in shared]


def _reference_mean(seeds: Sequence[Sequence[tuple[float, float]]]) -> float:
    means = [fmean(theirs for _, theirs in seed) for seed in seeds]
    return fmean(means)


def difference_table(differences: Sequence[Difference], metrics: Mapping[str, str], title: str) -> Table:
    """Make a table with a line for each treatment and a column for each metric, in points.

    Args:
        differences: Comparisons with one kind of reference.
        metrics: Metric -> name of its column.
        title: Title of the table.

    Returns:
        The table; a cell is "+16.6 [+14.1, +19.0]", with the name of the reference if there are several.
    """
    lines = []
    several = len({difference.reference for difference in differences}) > 1
    for treatment in dict.fromkeys(difference.treatment for difference in differences):
        by_metric = {item.metric: item for item in differences if item.treatment == treatment}
        most = max(by_metric.values(), key=lambda item: item.episodes)
        cells = [_cell(by_metric.get(metric), several) for metric in metrics]
        lines.append((treatment, str(most.seeds), str(most.episodes), *cells))
    return Table(title, ("method", "seeds", "episodes", *metrics.values()), tuple(lines))


def _cell(difference: Difference | None, with_reference: bool) -> str:
    if difference is None:
        return "–"
    cell = f"{100 * difference.difference:+.1f}"
    if difference.low is not None and difference.high is not None:
        cell += f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{cell} to {difference.reference}" if with_reference else cell
