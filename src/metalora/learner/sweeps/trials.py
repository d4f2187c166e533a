"""A trial as a row of the table: what it trained, how far it came, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from metalora.learner.sweeps.space import Choice

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: Its number, from 0.
        state: "complete", "pruned", "failed" or "running".
        choice: What it trained.
        accuracy: The best accuracy of its validations; None without one.
        steps: Number of steps until its last validation.
        parameters: How many numbers were trained; None if the training has not ended.
        seconds: How long it took.
        reason: Why it was pruned or has failed; empty for a complete one.
        curve: Number of steps and accuracy of each validation.
        is_first: Whether its settings are those without a search.
    """

    number: int
    state: str
    choice: Choice
    accuracy: float | None
    steps: int
    parameters: int | None
    seconds: float | None
    reason: str
    curve: tuple[tuple[int, float], ...]
    is_first: bool

    @classmethod
    def of(cls, trial: FrozenTrial, first: str) -> TrialRow:
        """Return the row of a trial of Optuna.

        Args:
            trial: The trial.
            first: Name of the attribute of the trial with the settings without a search.
        """
        values: Mapping[str, Any] = trial.user_attrs
        curve = tuple((int(step), float(accuracy)) for step, accuracy in values.get("curve", ()))
        return cls(
            number=trial.number,
            state=STATES[trial.state.name],
            choice=Choice(**values["choice"]),
            accuracy=max((accuracy for _, accuracy in curve), default=None),
            steps=curve[-1][0] if curve else 0,
            parameters=values.get("parameters"),
            seconds=values.get("seconds"),
            reason=values.get("reason", ""),
            curve=curve,
            is_first=bool(values.get(first)),
        )

    def table_row(self) -> dict[str, Any]:
        """Return the row of the table of trials: plain values without the curve."""
        values = asdict(self)
        choice = values.pop("choice")
        del values["curve"], values["is_first"]
        number, state = values.pop("number"), values.pop("state")
        return {"trial": number, "state": state, **choice, **values}
