"""`wrap`: a PeftModel that takes conditions and task ids."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from metalora.integrations.peft.bank import container_of
from metalora.integrations.peft.model import TASKS


def wrap(model: PeftModel) -> PeftModel:
    """Let a PeftModel take `condition=` and `task_ids=` in forward and in generate, with beams too; returns the model.

    condition  a `metalora.Condition` (`adapter_of(model).condition(inputs)`), or one for each adapter by name
    task_ids   a number, or one for each example
    Activation checkpointing is exact with or without it. ValueError: no PeftModel, or none with an adapter of ours.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"wrap: expected a PeftModel, got a {type(model).__name__}")
    if container_of(model) is None:
        raise ValueError(f"wrap: the {type(model).__name__} has no adapter of metalora.peft")
    if TASKS not in model.special_peft_forward_args:
        model.special_peft_forward_args |= {"condition", "task_ids", TASKS}
        model.register_forward_pre_hook(_keep_task_ids, with_kwargs=True)
    return model


def _keep_task_ids(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Rename `task_ids`, which the PeftModels of language tasks take for their own and drop."""
    return args, {TASKS if key == "task_ids" else key: value for key, value in kwargs.items()}
