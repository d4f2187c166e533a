"""Learning rates that were chosen on the validation split."""

from collections.abc import Callable, Iterable
from typing import Any


def best_rates(
    rows: Iterable[dict], key: Callable[[dict], Any], value: Callable[[dict], float], rate: Callable[[dict], float]
) -> dict[Any, float]:
    """Key -> the learning rate of the row on the validation split that has the best value."""
    best: dict[Any, dict] = {}
    for row in rows:
        if row["config"]["split"] == "val" and (key(row) not in best or value(row) > value(best[key(row)])):
            best[key(row)] = row
    return {name: rate(row) for name, row in best.items()}
