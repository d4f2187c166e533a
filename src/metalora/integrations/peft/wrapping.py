"""`wrap`: a PeftModel that takes conditions and task ids."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from metalora.integrations.peft.calls import TASK_IDS_KEYWORD
from metalora.integrations.peft.container import required_container


def wrap(model: PeftModel) -> PeftModel:
    """Let a PeftModel take `condition=` and `task_ids=` in forward and in generate, also with beams.

    `condition` is a `metalora.Condition`, which `adapter_of(model).condition(inputs)` makes, or a condition per adapter
    name; `task_ids` is the number of a task, or one for each example. Activation checkpointing is exact, whether the
    model is wrapped or not.

    Args:
        model: The model; it is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: The model is not a PeftModel, or has no adapter of this library.

    Example:
        >>> import peft, torch, metalora.peft
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> config = metalora.peft.MetaTTConfig(method="metatt-4+1d", r=2, tasks=2, target_modules=["0"])
        >>> model = metalora.peft.wrap(peft.get_peft_model(base, config))
        >>> model(torch.zeros(3, 6), task_ids=[0, 1, 1]).shape
        torch.Size([3, 4])
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"wrap: expected a PeftModel, got a {type(model).__name__}")
    required_container(model)
    if _rename_task_ids not in model._forward_pre_hooks.values():  # a second `wrap` adds no second hook
        model.register_forward_pre_hook(_rename_task_ids, with_kwargs=True)
    return model


def _rename_task_ids(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Rename `task_ids`, an argument that the PeftModels of language tasks have themselves and drop."""
    return args, {TASK_IDS_KEYWORD if key == "task_ids" else key: value for key, value in kwargs.items()}
