"""Short digests that tell whether a saved adapter meets the base and the frozen factors that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metalora._util.digest import tensor_digest
from metalora._util.sharding import is_distributed
from metalora.adapters.adapter import Adapter
from metalora.adapters.held_matrix import required_base
from metalora.adapters.layers.read_as_base import ReadAsBase

SAMPLE_SIZE = 4096  # numbers of a weight that are hashed; all of a large model would take seconds
DIGITS = 32


def fingerprint(model: nn.Module, paths: Sequence[str]) -> str | None:
    """Hash the base weights of some modules by the first rule: up to 4,096 numbers of each, at a whole distance.

    A distance is rounded down, so that up to half of a weight, its end, has no sample. Files have the digests of
    `metalora.io.base_samples` beside this one; older files have this one only.

    Args:
        model: The base model, with or without an adapter, merged or not: the fingerprint is the same.
        paths: Paths of the targets; their order counts.

    Returns:
        32 hexadecimal digits; None if a weight is spread over processes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> before = fingerprint(model, ["0"])
        >>> _ = nn.init.zeros_(model[0].weight)
        >>> fingerprint(model, ["0"]) == before
        False
    """
    labelled = []
    for path in paths:
        weight = base_weight(required_base(model, path))
        if is_distributed(weight):
            return None
        labelled.append((f"{path} {tuple(weight.shape)}", _evenly_spaced(weight)))
    return tensor_digest(labelled)[:DIGITS]


def sampled_digest(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Hash tensors by name: their shapes, and up to 4,096 numbers of each, spread from its first to its last.

    Args:
        tensors: Names and tensors of any dtype and device, in any order.

    Returns:
        32 hexadecimal digits; None if a tensor is not here in full: on the meta device, sharded, or quantised.

    Example:
        >>> weight = torch.zeros(90, 90)
        >>> before = sampled_digest([("weight", weight)])
        >>> weight[46:] = 1.0
        >>> sampled_digest([("weight", weight)]) == before
        False
    """
    by_name = dict(tensors)
    if not all(is_here(tensor) for tensor in by_name.values()):
        return None
    labelled = ((f"{name} {tuple(by_name[name].shape)}", _spread(by_name[name])) for name in sorted(by_name))
    return tensor_digest(labelled)[:DIGITS]


def is_here(tensor: Tensor) -> bool:
    """Return whether the numbers of a tensor are all in the memory of this process, one by one.

    A sharded weight is of a class of its own (DTensor), or empty on this process; so is a quantised one.

    Example:
        >>> is_here(torch.zeros(2)), is_here(torch.zeros(2, device="meta"))
        (True, False)
    """
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.numel() > 0


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


def base_weight(module: nn.Module) -> Tensor:
    """Return the weight of a plain or adapted layer as it was before any merge."""
    original = getattr(module, "original", None)  # a merged layer keeps the weight of its base here
    base = module.wrapped if isinstance(module, ReadAsBase) else module
    weight = base.weight if original is None else original
    assert isinstance(weight, Tensor)
    return weight


def _evenly_spaced(weight: Tensor) -> Tensor:
    """Return up to `SAMPLE_SIZE` numbers of a weight in float32 on the CPU, shape (count,)."""
    flat = weight.detach().flatten()
    step = max(1, flat.numel() // SAMPLE_SIZE)
    return flat[::step][:SAMPLE_SIZE].to("cpu", torch.float32)


def _spread(tensor: Tensor) -> Tensor:
    """Return up to `SAMPLE_SIZE` numbers of a tensor, the first and the last among them, in float32 on the CPU."""
    flat = tensor.detach().flatten()
    if flat.numel() > SAMPLE_SIZE:
        # In integers: `linspace` rounds on every device in another way.
        index = torch.arange(SAMPLE_SIZE, device=flat.device) * (flat.numel() - 1) // (SAMPLE_SIZE - 1)
        flat = flat[index]
    return flat.to("cpu", torch.float32)
