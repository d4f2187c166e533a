"""Targets that PEFT takes for experts: dense layers with the names that experts had in transformers 4.

Transformers 5 stores the experts of these families in one parameter. PEFT 0.21 turns targets with their old names into
parameters, those of dense layers too, and leaves the LoRA of the dense layers out without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import nn

OLD_NAMES = {"mixtral": ("gate", "w1", "w2", "w3"), "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj")}
"""Family whose conversion transformers uses -> the last words of the targets that PEFT turns into parameters."""


def taken_for_experts(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Return the paths of the layers that PEFT takes for experts.

    Args:
        model: The base model.
        paths: Paths of adapted layers, of which no one is a matrix that a module holds.

    Example:
        >>> taken_for_experts(nn.ModuleDict({"up_proj": nn.Linear(2, 2)}), ["up_proj"])
        []
    """
    # A model of transformers comes with this table, which PEFT reads too; other models have no such names.
    conversions = getattr(sys.modules.get("transformers.conversion_mapping"), "_MODEL_TO_CONVERSION_PATTERN", {})
    family = conversions.get(getattr(getattr(model, "config", None), "model_type", ""))
    names = OLD_NAMES[family] if family in OLD_NAMES else ()
    return [path for path in paths if path.rpartition(".")[2] in names]
