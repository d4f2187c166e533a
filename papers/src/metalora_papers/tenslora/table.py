"""TensLoRA's two protocols as rows: every construction at LoRA's rank, and at LoRA's number of parameters."""

from __future__ import annotations

import dataclasses

from torch import nn

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.cost import match_parameters
from metalora.methods.tenslora import CONSTRUCTIONS

ISORANK, ISOPARAMETERS = "isorank", "isoparameters"
NAMES = tuple(f"tenslora-{name}, {protocol}" for name in CONSTRUCTIONS for protocol in (ISORANK, ISOPARAMETERS))


def protocol_rows(model: nn.Module, lora: AdapterConfig) -> dict[str, AdapterConfig]:
    """Return every Tucker construction on the targets of a LoRA, at its scale alpha / r, by the name of its row.

    "isorank" gives every bond the rank of LoRA, even above the size of a mode, as TensLoRA's code does.
    "isoparameters" takes the largest rank with at most LoRA's number of parameters; no bond is larger than its mode.

    Args:
        model: The frozen model.
        lora: The configuration of LoRA, with one rank for all targets.
    """
    assert isinstance(lora.rank, int) and lora.alpha is not None
    budget = count_params(lora, find_targets(model, lora.targets, lora.exclude))
    rows = {}
    for name in NAMES:
        method, _, protocol = name.partition(", ")
        same_rank = dataclasses.replace(lora, method=method, alpha=lora.alpha / lora.rank, clip_rank=False)
        rows[name] = same_rank if protocol == ISORANK else match_parameters(model, same_rank, budget)
    return rows
