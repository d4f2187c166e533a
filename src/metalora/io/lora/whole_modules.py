"""Modules that were trained whole beside a LoRA, such as a classifier (`modules_to_save` of PEFT)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.io.lora.placement import place

WholeModules = Literal["refuse", "load", "leave_out"]
CHOICES: tuple[WholeModules, ...] = ("refuse", "load", "leave_out")


def values_of_whole_modules(
    model: nn.Module, tensors: Mapping[str, Tensor], file: Path, choice: WholeModules
) -> dict[Tensor, Tensor]:
    """Return what is to be written into a model for the modules that a LoRA's file holds whole.

    Args:
        model: The base model.
        tensors: Name of a tensor, as in the model that was trained -> its value, of any shape.
        file: The file, for error messages.
        choice: "load", "leave_out", or "refuse" them.

    Returns:
        Parameter or buffer of the model -> its new value, of the same shape; empty for "leave_out".

    Raises:
        ValueError: There are such modules and they are refused; or the model has no such tensor of this shape.

    Example:
        >>> model, file = nn.Sequential(nn.Linear(2, 1)), Path("FILE")
        >>> values_of_whole_modules(model, {"0.bias": model[0].bias.detach() + 1}, file, "load")[model[0].bias].shape
        torch.Size([1])
    """
    if choice not in CHOICES:
        raise ValueError(f"whole_modules is {shown(choice)}{nearest(str(choice), CHOICES)}")
    if not tensors or choice == "leave_out":
        return {}
    module_names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    if choice == "refuse":
        raise ValueError(
            f"{file}: {shown(module_names[0])} was trained whole, and an adapter does not hold that: "
            "whole_modules='load' writes it into the model, 'leave_out' goes without it (metalora import: "
            "--leave-out-modules)"
        )
    paths = place(module_names, model, file)
    values: dict[Tensor, Tensor] = {}
    for name, value in tensors.items():
        module_name, _, tensor_name = name.rpartition(".")
        module = model.get_submodule(paths[module_name])
        present = {**module._parameters, **module._buffers}.get(tensor_name)
        if present is None or present.shape != value.shape:
            expected = "no such tensor" if present is None else f"{tuple(present.shape)}"
            raise ValueError(f"{file}: {shown(name)} is {tuple(value.shape)}, the model has {expected}")
        values[present] = value
    return values


@torch.no_grad()
def write_values(values: Mapping[Tensor, Tensor]) -> None:
    """Write values into tensors of the same shape.

    Example:
        >>> bias = torch.zeros(2)
        >>> write_values({bias: torch.ones(2)})
        >>> bias
        tensor([1., 1.])
    """
    for tensor, value in values.items():
        tensor.copy_(value)
