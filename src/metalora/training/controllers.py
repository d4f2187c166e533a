"""Controllers: rules that act during training in addition to the loss, such as falling ranks.

A controller is configured by a field of `TrainConfig`, or given to `transformers.Trainer` as a callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig, TwoSiteConfig
from metalora.ranks.budget import RankBudget
from metalora.ranks.schedule import RankSchedule
from metalora.ranks.two_site import TwoSite

if TYPE_CHECKING:
    from transformers import TrainerCallback


Rule = RankScheduleConfig | RankBudgetConfig | TwoSiteConfig


class Controller(Protocol):
    """A rule of training: `RankSchedule` lowers ranks by sweeps, `RankBudget` masks singular values, and `TwoSite`
    trains bond by bond."""

    def penalty(self) -> Tensor | None:
        """Return a scalar () with a gradient that is added to the loss, or None."""

    def after(self, step: int, optimizer: Any) -> Any:
        """Act after an optimiser step.

        Args:
            step: The number of optimiser steps so far; the gradients of the last one are still there.
            optimizer: The optimiser, whose state must follow if parameters change their shapes.
        """

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the rule to continue."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""


def controllers(model: nn.Module, config: TrainConfig) -> list[Controller]:
    """Return the controllers that a configuration asks for.

    Raises:
        ValueError: The configuration has more than one of a rank schedule, a rank budget and two-site training, or the
            adapter of the model does not allow the one that it has.

    Example:
        >>> controllers(nn.Linear(2, 2), TrainConfig())
        []
    """
    rules: dict[str, Rule | None] = {
        "rank_schedule": config.rank_schedule,
        "rank_budget": config.rank_budget,
        "two_site": config.two_site,
    }
    asked = {name: rule for name, rule in rules.items() if rule is not None}
    if len(asked) > 1:
        raise ValueError(f"train: {' and '.join(asked)} all change ranks while training; give one of them")
    return [_controller(model, rule, config.steps) for rule in asked.values()]


def _controller(model: nn.Module, rule: Rule, steps: int) -> Controller:
    if isinstance(rule, RankBudgetConfig):
        return RankBudget(model, rule, steps)
    if isinstance(rule, TwoSiteConfig):
        return TwoSite(model, rule, steps)
    return RankSchedule(model, rule)


def total_penalty(rules: Sequence[Controller]) -> Tensor | None:
    """Return the sum of the penalties of some controllers, a scalar, or None if no controller has one.

    Example:
        >>> total_penalty([]) is None
        True
    """
    total: Tensor | None = None
    for rule in rules:
        penalty = rule.penalty()
        if penalty is not None:
            total = penalty if total is None else total + penalty
    return total


def trainer_callback(rule: Rule) -> TrainerCallback:
    """Return a controller as a callback, for `transformers.Trainer(callbacks=[...])`.

    Its penalty joins the gradients before each optimiser step. The Trainer trains the model that has the adapter.

    Args:
        rule: The configuration of the controller.

    Raises:
        ValueError: When training starts, if the adapter of the model does not allow the controller.

    Example:
        >>> callback = trainer_callback(RankScheduleConfig(steps=(100,), ranks=(4,)))
    """
    from transformers import TrainerCallback

    class ControllerCallback(TrainerCallback):  # type: ignore[misc]
        """Runs one controller; the Trainer passes everything by keyword."""

        controller: Controller

        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **unused: Any) -> None:
            self.controller = _controller(model, rule, state.max_steps)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            penalty = self.controller.penalty()
            if penalty is not None:
                penalty.backward()  # type: ignore[no-untyped-call]

        def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **unused: Any) -> None:
            steps_done = state.global_step + 1  # the Trainer counts the step only after this call
            self.controller.after(steps_done, optimizer)

    return ControllerCallback()
