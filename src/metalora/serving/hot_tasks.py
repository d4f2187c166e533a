"""The tasks that were used last, ready to predict, within a bound on their memory."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from metalora.learner.task import AdaptedTask

OF_A_TENSOR = 400  # bytes of memory beside its numbers; measured
OF_A_TASK = 3600  # bytes of memory beside its tensors, with the row of its condition; measured


class TaskKey(NamedTuple):
    """A version of a task of a tenant; a version never changes."""

    tenant: int
    task: str
    version: int


class HotTasks:
    """Keeps the tasks that were used last; it may be used from any thread.

    Args:
        most_bytes: Room for the tensors of the tasks.

    Attributes:
        bytes: Size of the tensors that are kept.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes, self.bytes = most_bytes, 0
        self._tasks: OrderedDict[TaskKey, tuple[AdaptedTask, int]] = OrderedDict()  # the oldest first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of tasks that are kept."""
        return len(self._tasks)

    def get(self, key: TaskKey) -> AdaptedTask | None:
        """Return a task, or None if it is not kept."""
        with self._lock:
            if key not in self._tasks:
                return None
            self._tasks.move_to_end(key)
            return self._tasks[key][0]

    def put(self, key: TaskKey, task: AdaptedTask) -> None:
        """Keep a task, and forget those that were not used for the longest time if there is no room."""
        size = task_bytes(task)
        with self._lock:
            self._forget(key)
            self._tasks[key] = task, size
            self.bytes += size
            while self.bytes > self.most_bytes:
                self._forget(next(iter(self._tasks)))

    def _forget(self, key: TaskKey) -> None:
        _, size = self._tasks.pop(key, (None, 0))
        self.bytes -= size


def task_bytes(task: AdaptedTask) -> int:
    """Return about how much memory a task takes whose condition is a row of a table, in bytes."""
    tensors = (*tensors_in(task.readout), *(task.factors or {}).values())
    return OF_A_TASK + sum(tensor.nbytes + OF_A_TENSOR for tensor in tensors)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value: a tensor, a dataclass with tensors, or one with such dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
