"""Sequential learning (MetaTT, section 3.2): task A, then B, then A again, and what is forgotten of A meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from metalora_papers.metatt.scores import METRICS, judged, metrics_of
from metalora_papers.rows import Row

FORGETTING = "forgetting"


def sequential_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows whose results hold the scores of all tasks after each phase, and the forgetting.

    Forgetting is the score of the first task after phase 1 minus that after phase 2.

    Args:
        rows: Test rows of runs in phases.

    Raises:
        ValueError: Two rows of one method and seed: the rows are of several settings.
    """
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        method, seed = row["config"]["method"], row["seed"]
        if (method, seed) in found:
            raise ValueError(f"{method!r} has seed {seed} twice: the rows are of several settings")
        scores = scores_by_phase(row)
        first = row["config"]["phases"][0]
        results = {
            **{f"phase{k}": by_task for k, by_task in enumerate(scores, 1)},
            FORGETTING: scores[0][first] - scores[1][first],
            "num_params": row["results"]["num_params"],
            "seconds": row["time"]["seconds"],
        }
        found[method, seed] = {**row, "results": results}
    return list(found.values())


def scores_by_phase(row: Row) -> list[dict[str, float]]:
    """Return the scores of all tasks after each phase; those after the last one are the results of the run."""
    config, results = row["config"], row["results"]
    length = config["train"]["steps"] // len(config["phases"])
    by_step = {point["step"]: point for point in results["history"]}
    ends = range(length, length * len(config["phases"]), length)
    return [judged(scores, config["tasks"]) for scores in (*(by_step[end] for end in ends), results)]


def sequential_columns(phases: Sequence[str]) -> dict[str, str]:
    """Return metric -> heading: every task after every phase, then the forgetting.

    Example:
        >>> list(sequential_columns(("rte", "mrpc", "rte")).values())[2:4]
        ['rte after 2, accuracy', 'mrpc after 2, accuracy']
    """
    tasks = tuple(dict.fromkeys(phases))
    columns = {
        f"phase{k}.{task}": f"{task} after {k}, {METRICS[metrics_of(task)[0]]}"
        for k in range(1, len(phases) + 1)
        for task in tasks
    }
    return {**columns, FORGETTING: f"{FORGETTING} of {phases[0]}"}
