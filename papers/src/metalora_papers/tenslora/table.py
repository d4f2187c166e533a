"""TensLoRA's two protocols as rows: every construction at LoRA's rank, and at LoRA's number of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.cost import match_parameters
from metalora.methods.registry import METHODS
from metalora.methods.tenslora import CONSTRUCTIONS

ISORANK, ISOPARAMETERS = "isorank", "isoparameters"
FAMILY = "tenslora-"
NAMES = tuple(f"{FAMILY}{name}, {protocol}" for name in CONSTRUCTIONS for protocol in (ISORANK, ISOPARAMETERS))
"""The seven Tucker constructions under both protocols."""


def protocol_rows(model: nn.Module, lora: AdapterConfig, further: Sequence[str] = ()) -> dict[str, AdapterConfig]:
    """Return every Tucker construction on the targets of a LoRA, at its scale alpha / r, by the name of its row.

    "isorank" gives every bond the rank of LoRA, even above the size of a mode, as TensLoRA's code does.
    "isoparameters" takes the largest rank with at most LoRA's number of parameters; no bond is larger than its mode.

    Args:
        model: The frozen model.
        lora: The configuration of LoRA, with one rank for all targets.
        further: Names of rows, of which those of other constructions with a protocol, such as
            "tenslora-qkv-depth-tt, isoparameters", are added.
    """
    assert isinstance(lora.rank, int) and lora.alpha is not None
    budget = count_params(lora, find_targets(model, lora.targets, lora.exclude))
    rows = {}
    for name in dict.fromkeys((*NAMES, *filter(is_protocol_row, further))):
        method, _, protocol = name.partition(", ")
        same_rank = dataclasses.replace(lora, method=method, alpha=lora.alpha / lora.rank, clip_rank=False)
        rows[name] = same_rank if protocol == ISORANK else match_parameters(model, same_rank, budget)
    return rows


def is_protocol_row(name: str) -> bool:
    """Return whether a name is that of a construction, in any of its forms, with a protocol.

    Example:
        >>> is_protocol_row("tenslora-qkv-depth-tt, isoparameters"), is_protocol_row("tenslora-qkv-depth-tt")
        (True, False)
    """
    method, _, protocol = name.partition(", ")
    return method in METHODS and method.startswith(FAMILY) and protocol in (ISORANK, ISOPARAMETERS)
