"""Rank schedules: the optimiser steps after which the ranks of an adapter fall, and the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.config import RankScheduleConfig
from metalora.ranks.sensitivity import LossSensitivity
from metalora.ranks.sweep import SweepReport, sweep

ROUNDINGS: dict[str, Callable[[float], int]] = {"round": round, "floor": math.floor, "ceil": math.ceil}


def ranks_by_step(schedule: RankScheduleConfig, rank: int) -> dict[int, int]:
    """Compute the rank after every step of a schedule.

    The ranks are a list, or r(i) = r_f + (r_0 - r_f) (1 - (i / N)^gamma) for i = 1..N, N being the number of steps.

    Args:
        schedule: The steps, and the ranks or the final rank.
        rank: r_0, the rank that the adapter has.

    Returns:
        Optimiser step -> rank after it.

    Raises:
        ValueError: Steps that do not ascend, another number of ranks than of steps, or ranks that grow.

    Example:
        >>> ranks_by_step(RankScheduleConfig(steps=(10, 20), final=2), rank=8)
        {10: 6, 20: 2}
    """
    steps = list(schedule.steps)
    if not steps or steps != sorted(set(steps)):
        raise ValueError(f"rank schedule: steps are {steps}, expected ascending numbers of at least 1")
    if bool(schedule.ranks) == bool(schedule.final):  # both, or neither
        raise ValueError("rank schedule: give either ranks, one for each step, or the final rank")
    if schedule.ranks and len(schedule.ranks) != len(steps):
        raise ValueError(f"rank schedule: {len(schedule.ranks)} ranks for {len(steps)} steps")
    ranks = list(schedule.ranks) or _ranks_by_formula(schedule, rank)
    for before, after in zip([rank, *ranks], ranks, strict=False):
        if not 1 <= after <= before:
            raise ValueError(f"rank schedule: {[rank, *ranks]} grows or ends; ranks must fall and be at least 1")
    return dict(zip(steps, ranks, strict=True))


def _ranks_by_formula(schedule: RankScheduleConfig, rank: int) -> list[int]:
    to_integer = ROUNDINGS[schedule.rounding]
    # i = N gives r_f exactly, since the bracket is zero there
    final, num_steps = schedule.final, len(schedule.steps)
    return [
        to_integer(final + (rank - final) * (1 - (number / num_steps) ** schedule.gamma))
        for number in range(1, num_steps + 1)
    ]


class RankSchedule:
    """Truncates a model's adapter at the steps of a schedule.

    With importance "sensitivity" it records the gradients of the last steps before each sweep. Otherwise the rank that
    the adapter has is all that it needs to remember, so that a run that goes on needs no state.

    Args:
        model: A model with an adapter.
        schedule: The steps and the ranks.

    Raises:
        ValueError: The model has no adapter, the schedule is refused by `ranks_by_step`, or importance "sensitivity" is
            asked of a ring or of mode "paper".

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> adapter = attach(model, AdapterConfig("lora", rank=4, targets=("0",)))
        >>> for factor in adapter.learned.values():
        ...     _ = nn.init.normal_(factor)
        >>> schedule = RankSchedule(model, RankScheduleConfig(steps=(1,), final=2))
        >>> schedule.after(0, None) is None, schedule.after(1, None).after
        (True, {'r': 2})
    """

    def __init__(self, model: nn.Module, schedule: RankScheduleConfig):
        self.model, self.schedule = model, schedule
        self.ranks = ranks_by_step(schedule, self._adapter.rank)
        self.sensitivity = self._sensitivity()

    def _sensitivity(self) -> LossSensitivity | None:
        if self.schedule.importance == "magnitude":
            return None
        if self.schedule.mode == "paper":
            raise ValueError("rank schedule: mode 'paper' keeps the largest values; use importance 'magnitude' with it")
        return LossSensitivity(self.model, self.schedule.importance_steps)

    @property
    def _adapter(self) -> Adapter:
        adapter = adapter_of(self.model)
        if adapter is None:
            raise ValueError(f"rank schedule: {type(self.model).__name__} has no adapter")
        return adapter

    def after(self, step: int, optimizer: Optimizer | None) -> SweepReport | None:
        """Sweep if it is time; to be called after every optimiser step, before any evaluation.

        Args:
            step: The number of optimiser steps so far. The gradients of the last one are still there if sensitivity
                counts; the factors have made that step since, as in AdaLoRA's controller.
            optimizer: The optimiser, whose moments are reset or carried over.

        Returns:
            The report of the sweep, or None.
        """
        if self.sensitivity is not None and self._is_before_a_sweep(step):
            self.sensitivity.record()
        if step not in self.ranks:
            return None
        return sweep(
            self.model,
            rank=min(self.ranks[step], self._adapter.rank),  # a run that goes on may have swept already
            mode=self.schedule.mode,
            gauge=self.schedule.gauge,
            optimizer=optimizer,
            state=self.schedule.state,
            importance=self.sensitivity,
        )

    def _is_before_a_sweep(self, step: int) -> bool:
        """Whether the gradients of this step count for a sweep."""
        return any(sweep_step - self.schedule.importance_steps < step <= sweep_step for sweep_step in self.ranks)

    def penalty(self) -> None:
        """Nothing is added to the loss."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores in addition to the adapter's own rank: the gradients for the next sweep, if any."""
        return {} if self.sensitivity is None else {"recorded": self.sensitivity.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        if self.sensitivity is not None:
            self.sensitivity.restore(state["recorded"])
