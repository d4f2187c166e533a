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
    """Row name -> adapter: every Tucker construction on the targets of a LoRA, at its scale alpha / r.

    isorank gives every bond LoRA's rank, above a mode's size too, as TensLoRA's code does; isoparameters the largest
    rank whose numbers are at most LoRA's, with bonds no larger than their modes.
    """
    budget = count_params(lora, find_targets(model, lora.targets, lora.exclude))
    found = {}
    for name in NAMES:
        method, _, protocol = name.partition(", ")
        same_rank = dataclasses.replace(lora, method=method, alpha=lora.alpha / lora.rank, clip_rank=False)
        found[name] = same_rank if protocol == ISORANK else match_parameters(model, same_rank, budget)
    return found
