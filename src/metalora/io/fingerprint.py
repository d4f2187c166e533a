"""Short digests that tell whether a saved adapter meets the base and the frozen factors that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalora._util.digest import tensor_digest
from metalora.adapters.adapter import Adapter

SAMPLE_SIZE = 4096  # numbers of a weight that are hashed; all of a large model would take seconds
DIGITS = 32


def fingerprint(model: nn.Module, paths: Sequence[str]) -> str:
    """Hash the base weights of some modules: their shapes, and up to 4,096 evenly spaced numbers of each.

    Args:
        model: The base model, with or without an adapter, merged or not: the fingerprint is the same.
        paths: Module paths of the targets; their order counts.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> before = fingerprint(model, ["0"])
        >>> _ = nn.init.zeros_(model[0].weight)
        >>> fingerprint(model, ["0"]) == before
        False
    """
    labelled = []
    for path in paths:
        weight = _base_weight(model.get_submodule(path))
        labelled.append((f"{path} {tuple(weight.shape)}", _evenly_spaced(weight)))
    return tensor_digest(labelled)[:DIGITS]


def frozen_digest(adapter: Adapter) -> str | None:
    """Hash the frozen factors, which are made from the seed and are not saved.

    Another version of torch may draw other numbers from the same seed; the digest notices it.

    Returns:
        32 hexadecimal digits, or None for an adapter without frozen factors.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> frozen_digest(attach(model, AdapterConfig("lora", rank=2, targets="0"))) is None  # LoRA learns A and B
        True
    """
    labelled = []
    saved = adapter.kept_frozen
    for key, param in adapter.layout.params.items():
        if param.frozen and key not in saved:
            value = adapter.stored_value(key)
            # In float32, so that a model in float64 has the same digest.
            labelled.append((f"{key} {tuple(value.shape)}", value.to("cpu", torch.float32)))
    return tensor_digest(labelled)[:DIGITS] if labelled else None


def _base_weight(module: nn.Module) -> Tensor:
    """Return the weight of a plain or adapted layer as it was before any merge."""
    original = getattr(module, "original", None)  # a merged layer keeps the weight of its base here
    base = getattr(module, "base", module)
    weight = base.weight if original is None else original
    assert isinstance(weight, Tensor)
    return weight


def _evenly_spaced(weight: Tensor) -> Tensor:
    """Return up to `SAMPLE_SIZE` numbers of a weight in float32 on the CPU, shape (count,)."""
    flat = weight.detach().flatten()
    step = max(1, flat.numel() // SAMPLE_SIZE)
    return flat[::step][:SAMPLE_SIZE].to("cpu", torch.float32)
