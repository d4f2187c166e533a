"""What a search has found: its trials, the best one next to that without a search, and whether it was worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from metalora.learner.report import half_interval
from metalora.learner.sweeps.trials import TrialRow


@dataclass(frozen=True)
class SweepResult:
    """The result of a search; `metalora.learner.sweep_finetune` and `sweep_fit` make it.

    Attributes:
        verb: "finetune" or "fit".
        trials: All trials that have ended.
        best: The complete trial with the best validation; None without one.
        best_scores: Its scores on what no trial has seen: of each test input 0 or 1, or the accuracy of each episode.
        first_scores: Those of the settings without a search, in the same order; empty if that trial has failed.
        unit: What the scores are of: "inputs" or "episodes".
        settings: All settings of the best trial, which are in the file best.yaml.
    """

    verb: str
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    best_scores: tuple[float, ...]
    first_scores: tuple[float, ...]
    unit: str
    settings: dict[str, Any]

    @property
    def first(self) -> TrialRow | None:
        """The trial with the settings without a search; None if it has not ended."""
        return next((row for row in self.trials if row.is_first), None)

    @property
    def gain(self) -> tuple[float, float]:
        """The mean difference of the best and the first trial in the test, and half of its 95 % interval."""
        differences = [best - first for best, first in zip(self.best_scores, self.first_scores, strict=True)]
        return fmean(differences), half_interval(differences)

    @property
    def verdict(self) -> str:
        """Say in a sentence or two whether the search was worth it, by what no trial has seen."""
        if self.best is None:
            return self._without_best()
        if not self.best_scores:
            return "Nothing was kept that is enough for a test, so nobody knows whether the search was worth it."
        best = _percent(self.best_scores)
        tested = f"on {len(self.best_scores)} test {self.unit} that no trial has seen"
        if self.best.is_first:
            return (
                f"The search was not worth it: none of the other {len(self.trials) - 1} trials was better in the "
                f"validation than the settings without a search, which reach {best} {tested}."
            )
        if not self.first_scores:
            return f"The settings without a search failed; the best trial reaches {best} {tested}."
        return self._comparison(f"{best} against {_percent(self.first_scores)} without it {tested}")

    def _comparison(self, numbers: str) -> str:
        gain, margin = self.gain
        difference = f"{100 * gain:+.1f} ± {100 * margin:.1f} points"
        if gain > margin:
            return f"The search was worth it: {numbers}, {difference}."
        if gain < -margin:
            return f"The search did harm: {numbers}, {difference}. Use the settings without a search."
        return f"The search was not worth it: the two cannot be told apart, {numbers}, {difference}."

    def _without_best(self) -> str:
        reasons = [row.reason for row in self.trials if row.state == "failed"]
        if not reasons:
            return "No trial was completed."
        if len(reasons) == 1:
            return f"The only trial failed: {reasons[0]}"
        return f"All {len(reasons)} trials failed; the first one: {reasons[0]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "verb": self.verb,
            "verdict": self.verdict,
            "best": None if self.best is None else self.best.table_row(),
            "first": None if self.first is None else self.first.table_row(),
            "test": {
                "unit": self.unit,
                "count": len(self.best_scores),
                "best": _mean_and_interval(self.best_scores),
                "first": _mean_and_interval(self.first_scores),
                "gain": list(self.gain) if self.best_scores and self.first_scores else None,
            },
            "settings": self.settings,
            "trials": [asdict(row) for row in self.trials],
        }

    def __repr__(self) -> str:
        return self.verdict


def _mean_and_interval(scores: Sequence[float]) -> list[float] | None:
    return [fmean(scores), half_interval(scores)] if scores else None


def _percent(scores: Sequence[float]) -> str:
    return f"{100 * fmean(scores):.1f} ± {100 * half_interval(scores):.1f} %"
