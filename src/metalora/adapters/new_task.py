"""A task that comes later: its slice is fitted alone, and everything else keeps its bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.bound_target import slot_of
from metalora.adapters.resize import resize


@contextlib.contextmanager
def new_task(adapter: Adapter, like: int | None = None) -> Iterator[int]:
    """Give an adapter one more task; inside of the block nothing but the task's own slice is learned.

    Make the optimiser inside, from `adapter.parameter_groups(...)`. What was trained before keeps its bits, whatever
    the weight decay, since it is not trained at all.

    Args:
        adapter: An adapter of a method with a task mode.
        like: The task whose slice the new one starts from; None: the mean of all tasks.

    Yields:
        The number of the new task.

    Raises:
        ValueError: A method without tasks, a merged adapter, or a task that does not exist; nothing is changed.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("task-lora", rank=2, targets="0", tasks=2))
        >>> with metalora.new_task(adapter) as number:
        ...     number, sum(p.requires_grad for p in adapter.parameters())
        (2, 2)
    """
    stored = {key: param for key, param in adapter.layout.params.items() if "task" in param.modes}
    tasks = adapter.config.tasks
    if not stored:
        raise ValueError(f"new_task: {adapter.method.name!r} has no task mode that is looked up by number")
    if adapter.merged:
        raise ValueError("new_task: the adapter is merged; unmerge it first")
    if like is not None and not 0 <= like < tasks:
        raise ValueError(f"new_task: task {like}: expected 0..{tasks - 1}")
    larger, starts = {}, {}
    for key, param in stored.items():
        axis, factor = param.modes.index("task"), adapter.factors[key].detach()
        starts[key] = factor.mean(axis) if like is None else factor.select(axis, like)
        larger[key] = torch.cat([factor, starts[key].unsqueeze(axis)], axis)
    required = {id(p): p.requires_grad for p in adapter.parameters()}  # `resize` keeps the objects
    resize(adapter, replace(adapter.config, tasks=tasks + 1), larger)
    adapter.requires_grad_(False)
    # A slice of a Parameter cannot be trained alone: weight decay and moments would reach the slices of old tasks.
    adapter.pending_task.update({slot_of(key): nn.Parameter(value.clone()) for key, value in starts.items()})
    try:
        yield tasks
    finally:
        _write_pending_task(adapter)
        for parameter in adapter.parameters():
            parameter.requires_grad_(required.get(id(parameter), True))


@torch.no_grad()
def _write_pending_task(adapter: Adapter) -> None:
    """Write the new task's slices, which are parameters of their own inside of `new_task`, into the factors."""
    for key, axis in adapter.task_keys.items():
        newest = adapter.learned_by_slot[slot_of(key)].select(axis, adapter.config.tasks - 1)
        newest.copy_(adapter.pending_task[slot_of(key)])
    adapter.pending_task.clear()
