"""Rank schedules: after which optimiser steps the ranks of an adapter fall, and to what."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from metalora.adapters.attach import adapter_of
from metalora.config import RankScheduleConfig
from metalora.ranks.sweep import SweepReport, sweep

ROUNDINGS = {"round": round, "floor": math.floor, "ceil": math.ceil}


def ranks_by_step(schedule: RankScheduleConfig, rank: int) -> dict[int, int]:
    """Optimiser step -> rank after it, from a list or from r(i) = r_f + (r_0 - r_f) (1 - (i / N)^gamma), i = 1..N.

    `rank` is r_0, what the adapter has. ValueError: steps that do not ascend, too few ranks, ranks that grow.
    """
    steps, n = schedule.steps, len(schedule.steps)
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(f"rank schedule: steps are {list(steps)}, expected ascending numbers of at least 1")
    if bool(schedule.ranks) == bool(schedule.final):
        raise ValueError("rank schedule: give either ranks, one for each step, or the final rank")
    if schedule.ranks and len(schedule.ranks) != n:
        raise ValueError(f"rank schedule: {len(schedule.ranks)} ranks for {n} steps")
    whole = ROUNDINGS[schedule.rounding]
    last = schedule.final
    found = schedule.ranks or tuple(
        whole(last + (rank - last) * (1 - (i / n) ** schedule.gamma)) for i in range(1, n + 1)
    )
    for before, after in zip((rank, *found), found, strict=False):
        if not 1 <= after <= before:
            raise ValueError(f"rank schedule: {[rank, *found]} grows or ends; ranks must fall and be at least 1")
    return dict(zip(steps, found, strict=True))


class RankSchedule:
    """Sweeps an adapter's model when its step has come; the rank that it has is all it need remember."""

    def __init__(self, model: nn.Module, schedule: RankScheduleConfig):
        self.model, self.schedule = model, schedule
        self.ranks = ranks_by_step(schedule, adapter_of(model).rank)

    def after(self, step: int, optimizer: Any) -> SweepReport | None:
        """Call with the number of optimiser steps taken, before any evaluation."""
        if step not in self.ranks:
            return None
        schedule = self.schedule
        return sweep(
            self.model,
            rank=min(self.ranks[step], adapter_of(self.model).rank),
            mode=schedule.mode,
            gauge=schedule.gauge,
            optimizer=optimizer,
            state=schedule.state,
        )

    def penalty(self) -> None:
        """Nothing is added to the loss."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the adapter's own rank."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take."""
