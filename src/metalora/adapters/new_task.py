"""A task that comes later: its slice is fitted alone, and everything else keeps its bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.resize import resize


@contextlib.contextmanager
def new_task(adapter: Adapter, like: int | None = None) -> Iterator[int]:
    """Give the adapter one more task; inside, nothing is learned but the task's own slice. Yields its number.

    like  the task whose slice it starts from; None: the mean of all
    Make the optimiser inside, from `adapter.parameter_groups(...)`. What was trained before keeps its very bits,
    whatever the weight decay, since it is not trained at all. ValueError: a method without tasks, a merged adapter, a
    task that does not exist; nothing is changed.
    """
    stored = {key: one for key, one in adapter.layout.params.items() if "task" in one.modes}
    tasks = adapter.config.tasks
    if not stored:
        raise ValueError(f"new_task: {adapter.method.name!r} has no task mode that is looked up by number")
    if adapter.merged:
        raise ValueError("new_task: the adapter is merged; unmerge it first")
    if like is not None and not 0 <= like < tasks:
        raise ValueError(f"new_task: task {like}: expected 0..{tasks - 1}")
    larger, starts = {}, {}
    for key, one in stored.items():
        axis, factor = one.modes.index("task"), adapter.factors[key].detach()
        starts[key] = factor.mean(axis) if like is None else factor.select(axis, like)
        larger[key] = torch.cat([factor, starts[key].unsqueeze(axis)], axis)
    required = {id(p): p.requires_grad for p in adapter.parameters()}
    resize(adapter, replace(adapter.config, tasks=tasks + 1), larger)
    adapter.requires_grad_(False)
    adapter.begin_task({key: nn.Parameter(value.clone()) for key, value in starts.items()})
    try:
        yield tasks
    finally:
        adapter.end_task()
        for parameter in adapter.parameters():
            parameter.requires_grad_(required.get(id(parameter), True))
