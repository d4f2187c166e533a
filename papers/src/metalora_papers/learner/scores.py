"""The rows of a table from the rows of its runs: one for every method and every peer, with the same metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from metalora_papers.learner.line_up import FITTED, LORA_READOUT, ORIGINAL
from metalora_papers.metalora.episode_suite import UNSEEN
from metalora_papers.report import Table
from metalora_papers.rows import Row

READOUT = "readout"
FROZEN = "readout, frozen network"  # the name of the readout's row without an adapter
TRAINED, NEVER_TRAINED, UNSEEN_CLASSES = "trained_mean", "held_out_mean", "unseen_class"
MEANS = {TRAINED: "trained", NEVER_TRAINED: "never trained", UNSEEN_CLASSES: "unseen classes"}


def method_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row for every method, peer and seed, in the order in which the table shows them.

    The frozen network and its peers, which need no training, come first, then the peers that are fitted on every
    support set, then the adapters.

    Args:
        rows: Rows of runs.

    Returns:
        Rows whose "method" is the name of the method or the peer. Their results: "per_task" by notion, the three means
        of `MEANS` (as far as there are such notions), num_params, calibration_error, milliseconds.
    """
    by_rank: list[list[Row]] = [[], [], []]
    for row in rows:
        method = row["config"]["method"]
        if method == ORIGINAL:
            by_rank[0] += [_peer_row(row, name) for name in peers_of(row)] + [_method_row(row, READOUT, FROZEN)]
        elif method == FITTED:
            by_rank[1] += [_peer_row(row, name) for name in peers_of(row)]
        else:
            by_rank[2].append(_method_row(row, READOUT, method))
    return [row for members in by_rank for row in members]


def peers_of(row: Row) -> list[str]:
    """Return the names of the peers that a row of the frozen network holds."""
    results = row["results"]
    return [name for name, value in results.items() if name != READOUT and _holds_scores(value)]


def _holds_scores(value: Any) -> bool:
    return isinstance(value, dict) and "episodes" in value


def _method_row(row: Row, key: str, name: str) -> Row:
    """Return the row of a readout, which has probabilities and a number of parameters."""
    own = row["results"]
    results = {
        **_summary(row, key),
        "num_params": own["num_params"],
        "calibration_error": own["calibration_error"].get("trained"),
        "milliseconds": _milliseconds(own.get("seconds", {}).get(READOUT)),
    }
    return _named(row, name, results)


def _peer_row(row: Row, name: str) -> Row:
    """Return the row of a peer, whose scores lie in the row of the frozen network."""
    seconds = row["results"].get("seconds", {}).get(name)
    return _named(row, name, _summary(row, name) | {"milliseconds": _milliseconds(seconds)})


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _named(row: Row, name: str, results: dict[str, Any]) -> Row:
    return {**row, "key": f"{row['key']}-{name}", "config": {**row["config"], "method": name}, "results": results}


def _summary(row: Row, key: str) -> dict[str, Any]:
    """Return the accuracy of every notion, the means over groups of notions, and both by episode."""
    by_task: dict[str, list[float]] = row["results"][key]["episodes"]
    results: dict[str, Any] = {"per_task": {task: _mean(values) for task, values in by_task.items()}}
    nested = [{"metric": f"per_task.{task}", "values": values} for task, values in by_task.items()]
    for metric, tasks in groups_of(row).items():
        if tasks:
            by_episode = mean_by_episode(by_task, tasks)
            results[metric] = _mean(by_episode)
            nested.append({"metric": metric, "values": by_episode})
            results.setdefault("by_episode", {})[metric] = by_episode
    return results | {"nested": nested}


def groups_of(row: Row) -> dict[str, tuple[str, ...]]:
    """Return the notions of each mean of `MEANS`.

    Args:
        row: A row of a run.
    """
    results = row["results"]
    trained = tuple(results["trained"])
    others = tuple(task for task in results[READOUT]["episodes"] if task not in trained)
    never_trained = tuple(task for task in others if task != UNSEEN)
    return {TRAINED: trained, NEVER_TRAINED: never_trained, UNSEEN_CLASSES: (UNSEEN,) if UNSEEN in others else ()}


def mean_by_episode(by_task: dict[str, list[float]], tasks: Sequence[str]) -> list[float]:
    """Return the mean over notions of episode 0, 1, ... of each of them.

    Args:
        by_task: Accuracies of the episodes, by notion.
        tasks: The notions that are averaged.
    """
    return [_mean(values) for values in zip(*(by_task[task] for task in tasks), strict=True)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values)


def seconds_table(rows: Sequence[Row], title: str) -> list[Table]:
    """Make a table of the seconds from a support set to a classifier, as one process measured them.

    Args:
        rows: Rows of runs.
        title: Title of the table.

    Returns:
        The table: a line for the readout of a network with a LoRA, and for each peer that is fitted on the support set;
        medians over seeds, and how many times longer a peer takes. No table if no such peer was run.
    """
    measured = [row["results"]["seconds"] for row in rows if row["config"]["method"] == FITTED]
    if not measured:
        return []
    medians = {name: median(seconds[name] for seconds in measured) for name in measured[0]}
    ours = medians[LORA_READOUT]
    lines = [(name, f"{value:.3f}", f"{value / ours:.1f}") for name, value in medians.items()]
    return [
        Table(title, ("", "seconds", "times the first"), tuple(sorted(lines, key=lambda line: line[0] != LORA_READOUT)))
    ]
