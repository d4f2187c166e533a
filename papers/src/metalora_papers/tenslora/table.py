"""TensLoRA's protocols as rows: a construction at LoRA's rank, or at LoRA's number of parameters."""

from __future__ import annotations

import dataclasses

from torch import nn

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.cost import match_parameters
from metalora.methods.registry import METHODS
from metalora.methods.tenslora import CONSTRUCTIONS
from metalora.ranks.allocation import ranks_by_spectra

ISORANK, ISOPARAMETERS, BY_SPECTRA = "isorank", "isoparameters", "by spectra"
PROTOCOLS = (ISORANK, ISOPARAMETERS, BY_SPECTRA)
CONSTRUCTION = "tenslora-"
NAMES = tuple(f"{CONSTRUCTION}{name}, {protocol}" for name in CONSTRUCTIONS for protocol in (ISORANK, ISOPARAMETERS))
"""The rows that the tables have by default."""


def split_protocol(name: str) -> tuple[str, str] | None:
    """Return the method and the protocol of a row's name, or None for another name.

    Args:
        name: "METHOD, isorank", "METHOD, isoparameters" or "METHOD, by spectra" with any method of the library.

    Example:
        >>> split_protocol("tenslora-qkv-depth-tt, by spectra")
        ('tenslora-qkv-depth-tt', 'by spectra')
        >>> split_protocol("tenslora-qkv-depth-tt, rank 8") is None
        True
    """
    method, _, protocol = name.partition(", ")
    return (method, protocol) if method in METHODS and protocol in PROTOCOLS else None


def protocol_row(
    model: nn.Module, lora: AdapterConfig, name: str, settings: AdapterConfig | None = None
) -> AdapterConfig:
    """Return the adapter of a row at LoRA's rank or number of parameters.

    "isorank" gives every bond the rank of LoRA, even above the size of a mode, as TensLoRA's code does.
    "isoparameters" takes the largest rank with at most LoRA's number of parameters; no bond is larger than its mode.
    "by spectra" shares out LoRA's number of parameters among the bonds by the singular values of the stacked weights.

    Args:
        model: The frozen model. Its sizes are enough for all protocols but "by spectra", which needs its weights.
        lora: The configuration of LoRA, with one rank for all targets.
        name: Name of the row, which `split_protocol` knows.
        settings: What the method has beyond its rank. None: the targets of LoRA, and its scale alpha / r as the alpha
            of a construction of TensLoRA.

    Raises:
        ValueError: No rank has so few parameters, or the method has no ranks that spectra could choose.
    """
    parts = split_protocol(name)
    assert parts is not None and isinstance(lora.rank, int) and lora.alpha is not None
    method, protocol = parts
    if settings is None:
        assert method.startswith(CONSTRUCTION), "another method has an alpha of its own"
        settings = dataclasses.replace(lora, method=method, alpha=lora.alpha / lora.rank)
    settings = dataclasses.replace(settings, clip_rank=False)
    if protocol == ISORANK:
        return dataclasses.replace(settings, rank=lora.rank)
    budget = count_params(lora, find_targets(model, lora.targets, lora.exclude))
    if protocol == ISOPARAMETERS:
        return match_parameters(model, settings, budget)
    return ranks_by_spectra(model, settings, budget)


def protocol_rows(model: nn.Module, lora: AdapterConfig) -> dict[str, AdapterConfig]:
    """Return every Tucker construction on the targets of a LoRA, at its scale alpha / r, by the name of its row.

    Args:
        model: The frozen model.
        lora: The configuration of LoRA, with one rank for all targets.
    """
    return {name: protocol_row(model, lora, name) for name in NAMES}


def is_construction(name: str) -> bool:
    """Return whether a row is one of TensLoRA's constructions, in any of its forms, with a protocol."""
    parts = split_protocol(name)
    return parts is not None and parts[0].startswith(CONSTRUCTION)
