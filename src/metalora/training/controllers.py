"""Controllers: rules of training beside the loss, each configured by a field of TrainConfig or given to the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig
from metalora.ranks.budget import RankBudget
from metalora.ranks.schedule import RankSchedule

if TYPE_CHECKING:
    from transformers import TrainerCallback


class Controller(Protocol):
    """What a rule does in a run: RankSchedule lowers ranks by sweeps, RankBudget masks singular values."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss, a scalar with a gradient; None: nothing."""

    def after(self, step: int, optimizer: Any) -> Any:
        """Called when `step` steps of the optimiser were taken, with the gradients of the last still there."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the rule to go on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""


def controllers(model: nn.Module, config: TrainConfig) -> list[Controller]:
    """The rules that a configuration asks for; ValueError for both kinds, or one that the adapter does not allow."""
    if config.rank_schedule is not None and config.rank_budget is not None:
        raise ValueError("train: rank_schedule and rank_budget both lower ranks, by sweeps and by masks; give one")
    rules = [rule for rule in (config.rank_schedule, config.rank_budget) if rule is not None]
    return [_made(model, rule, config.steps) for rule in rules]


def _made(model: nn.Module, rule: RankScheduleConfig | RankBudgetConfig, steps: int) -> Controller:
    if isinstance(rule, RankBudgetConfig):
        return RankBudget(model, rule, steps)
    return RankSchedule(model, rule)


def total_penalty(rules: Sequence[Controller]) -> Tensor | None:
    """The sum of what the rules add to the loss."""
    found = [one for one in (rule.penalty() for rule in rules) if one is not None]
    return sum(found[1:], found[0]) if found else None


def trainer_callback(rule: RankScheduleConfig | RankBudgetConfig) -> TrainerCallback:
    """The rule for `transformers.Trainer(callbacks=[...])`; its penalty joins the gradients before each step."""
    from transformers import TrainerCallback

    class ControllerCallback(TrainerCallback):
        """Runs one rule."""

        controller: Controller | None = None

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.controller = _made(model, rule, state.max_steps)

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            penalty = self.controller.penalty()
            if penalty is not None:
                penalty.backward()

        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            self.controller.after(state.global_step + 1, optimizer)  # counted by the Trainer only after this

    return ControllerCallback()
