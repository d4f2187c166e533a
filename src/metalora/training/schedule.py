"""The course of the learning rate over a run."""

from __future__ import annotations

import math
import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from metalora.config import TrainConfig


def learning_rate_schedule(optimizer: Optimizer, config: TrainConfig) -> LRScheduler:
    """Return the schedule of a configuration; every parameter group keeps its ratio to the others.

    Args:
        optimizer: An optimiser whose groups have their peak learning rates.
        config: Its `schedule`, `warmup` and `steps` count.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = learning_rate_schedule(optimizer, TrainConfig(steps=4, schedule="linear", warmup=0.5))
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(schedule.get_last_lr()[0])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.5]
    """
    if config.schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    if config.schedule == "linear":
        return LambdaLR(optimizer, lambda step: linear_factor(step, config.steps, config.warmup))
    if config.schedule == "cosine":
        return LambdaLR(optimizer, lambda step: cosine_factor(step, config.steps, config.warmup))
    peaks = [group["lr"] for group in optimizer.param_groups]
    # One more than the steps: the scheduler also steps after the last step of the optimiser.
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=config.steps + 1, pct_start=config.warmup)


def advance(scheduler: LRScheduler) -> None:
    """Go on to the learning rate of the next step. A step counts also if it was left out, as float16 does.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = learning_rate_schedule(optimizer, TrainConfig(steps=4, schedule="linear", warmup=0.5))
        >>> advance(schedule)
        >>> schedule.get_last_lr()
        [1.0]
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        scheduler.step()


def linear_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: up to 1 over the warm-up, then down to 0 after the last step.

    Args:
        step: Number of the step, from 0.
        steps: Number of all steps.
        warmup: Share of the steps over which the rate rises.

    Example:
        >>> [linear_factor(step, steps=4, warmup=0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    return min(*_rise_and_fall(step, steps, warmup))


def cosine_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: up to 1 over the warm-up, then half a cosine down to 0.

    After the warm-up it is (1 + cos(π t)) / 2, where t rises from 0 to 1 after the last step. Arguments as
    `linear_factor`.

    Example:
        >>> [round(cosine_factor(step, steps=4, warmup=0.25), 2) for step in range(4)]
        [1.0, 1.0, 0.75, 0.25]
    """
    rise, fall = _rise_and_fall(step, steps, warmup)
    return min(rise, (1 - math.cos(math.pi * min(fall, 1.0))) / 2)


def _rise_and_fall(step: int, steps: int, warmup: float) -> tuple[float, float]:
    """Return the straight lines up over the warm-up and down to 0 after the last step; both pass 1 at its end."""
    rising_steps = max(1, round(warmup * steps))  # at least 1, by which `rise` is divided
    rise = (step + 1) / rising_steps
    fall = max(0.0, (steps - step) / max(1, steps - rising_steps))
    return rise, fall
