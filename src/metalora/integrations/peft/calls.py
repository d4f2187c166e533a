"""The arguments of one call of a PeftModel, which its layers read: every thread and asyncio task has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Condition

Conditions = Condition | Mapping[str, Condition]
"""One condition for all adapters that need one, or a condition per adapter name."""
TaskIds = Tensor | Sequence[int] | int
"""A task per example, or one task for all."""
TASK_IDS_KEYWORD = "metalora_task_ids"
"""Keyword under which a wrapped PeftModel passes `task_ids` on: PeftModels of language tasks drop the name itself."""


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call.

    Attributes:
        adapter_names: The adapter of each example of a mixed batch; None for the active adapters.
        condition: The condition, or a condition per adapter name.
        task_ids: The task of each example, or of all.
        beams: Sequences per example that `generate` runs.
        base_only: Whether the frozen base runs alone.
        rows: Batch size and device -> result of `AdapterContainer.rows_by_adapter`.
    """

    adapter_names: Sequence[str] | None = None
    condition: Conditions | None = None
    task_ids: TaskIds | None = None
    beams: int = 1
    base_only: bool = False
    rows: dict[tuple[int, torch.device], dict[str, Tensor]] = field(default_factory=dict)

    def names_of_rows(self, batch_size: int) -> list[str]:
        """Return the adapter name of each row of a batch, with a row for each of its beams.

        Raises:
            ValueError: `adapter_names` does not fit the batch size.
        """
        assert self.adapter_names is not None, "a batch has rows by adapter only if the call has adapter_names"
        names = list(self.adapter_names)
        if len(names) == batch_size:
            return names
        if len(names) * self.beams == batch_size:
            return [name for name in names for _ in range(self.beams)]
        # PEFT's own wording, which its users and its tests look for.
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(names)} and {batch_size} respectively."
        )


_NO_CALL = Call()


class Calls:
    """The call that the running thread or asyncio task makes; a copy (pickle, deepcopy) makes none.

    Attributes:
        running: The context variable.

    Example:
        >>> calls = Calls()
        >>> with calls.entered(Call(beams=2)):
        ...     print(calls.running.get().beams)
        2
        >>> calls.running.get().beams
        1
    """

    def __init__(self) -> None:
        self.running: ContextVar[Call] = ContextVar("metalora.peft", default=_NO_CALL)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, ()

    @contextlib.contextmanager
    def entered(self, call: Call) -> Iterator[None]:
        """Within this context a call runs."""
        token = self.running.set(call)
        try:
            yield
        finally:
            self.running.reset(token)
