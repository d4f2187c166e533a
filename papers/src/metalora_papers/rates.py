"""Learning rates that are chosen on the validation split."""

from collections.abc import Callable, Iterable, Mapping

from metalora_papers.comparison import RateKey
from metalora_papers.rows import Row


def best_rates(
    rows: Iterable[Row],
    key: Callable[[Row], RateKey],
    value: Callable[[Row], float],
    rate: Callable[[Row], float],
) -> dict[RateKey, float]:
    """Return, for every key, the learning rate of its validation row with the best value.

    Args:
        rows: Rows of any split.
        key: What the rate of a row is chosen for.
        value: The score of a row.
        rate: The learning rate of a row.
    """
    best: dict[RateKey, Row] = {}
    for row in rows:
        if row["config"]["split"] != "val":
            continue
        if key(row) not in best or value(row) > value(best[key(row)]):
            best[key(row)] = row
    return {name: rate(row) for name, row in best.items()}


def at_chosen_rates(
    rows: Iterable[Row],
    rates: Mapping[RateKey, float],
    key: Callable[[Row], RateKey],
    rate: Callable[[Row], float],
) -> list[Row]:
    """Return the test rows whose learning rate was chosen, or for which no choice was made."""
    return [row for row in rows if row["config"]["split"] == "test" and rates.get(key(row), rate(row)) == rate(row)]
