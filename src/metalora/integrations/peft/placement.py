"""What is adapted, as a saved configuration tells it: other targets or another base are refused, not re-indexed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.targets import Target, refusal
from metalora.integrations.peft.compat import resolve_quantization_backend
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.io.fingerprint import fingerprint, frozen_digest
from metalora.io.lora.format import patterned
from metalora.methods.registry import get_method, method_of

ALONE: tuple[int, ...] = ()  # the layer of targets that are in no numbered one


def resolved(model: nn.Module, config: TensorNetworkConfig, matched: Mapping[str, Target | None]) -> list[Target]:
    """The targets of a configuration; those outside of the numbered layers have a layer of their own.

    ValueError: a layer that cannot be adapted, or not the targets that the adapter was saved with.
    """
    _check_saved(model, config, matched)
    for path, target in matched.items():
        module = model.get_submodule(path)
        base = getattr(module, "base_layer", module)
        why = refusal(model, path, base)
        if target is None or (why and resolve_quantization_backend(base) is None):
            raise ValueError(f"Target module {path!r} is not supported: {why}")
    if "layer" not in get_method(config.method).coordinates:
        return list(matched.values())
    return [replace(target, layer=ALONE) if target.layer is None else target for target in matched.values()]


def _check_saved(model: nn.Module, config: TensorNetworkConfig, matched: Mapping[str, Target | None]) -> None:
    if config.placement is None:
        return
    factors = dict(method_of(config.adapter_config()).factors)
    if config.placement["factors"] != factors:
        raise ValueError(f"the adapter's {config.method} is wired {config.placement['factors']}, here it is {factors}")
    for path, sizes in config.placement["targets"].items():
        if path not in matched:
            raise ValueError(
                f"the adapter was made for a {config.placement['base']['class']} with a layer {path!r}, which this "
                f"{type(model).__name__} has not{nearest(path, [p for p, _ in model.named_modules()])[:300]}"
            )
        if matched[path] is None or matched[path].sizes != sizes:
            here = matched[path].sizes if matched[path] is not None else "no layer that can be adapted"
            raise ValueError(f"the adapter was made for a layer {path!r} of sizes {sizes}, here it is {here}")


def check_frozen(config: TensorNetworkConfig, adapter: Adapter) -> None:
    """ValueError for a loaded adapter whose frozen factors, which no file holds, come out otherwise here."""
    saved = config.placement["frozen"] if config.placement is not None else None
    if saved is not None and saved != frozen_digest(adapter):
        raise ValueError(f"the adapter's frozen factors, made from seed {adapter.config.seed}, come out otherwise here")


def resolved_ranks(config: TensorNetworkConfig, paths: Sequence[str]) -> dict[str, int]:
    """Path -> rank by the first pattern that a path ends with, as PEFT matches them; patterns without one are left."""
    ranks = {path: patterned(config.rank_pattern, path, None) for path in paths}
    return {path: rank for path, rank in ranks.items() if rank is not None}


def described(adapter: Adapter) -> dict[str, Any]:
    """What became of a configuration's fields, and the placement: what the files of an adapter need beside it."""
    config = adapter.config
    rank = config.rank
    return {
        "r": dict(rank) if isinstance(rank, Mapping) else list(rank) if isinstance(rank, tuple) else rank,
        "tasks": config.tasks,
        "seed": config.seed,
        "condition": vars(config.condition) | {"stages": list(config.condition.stages)},
        "placement": {
            "targets": {path: dict(target.sizes) for path, target in adapter.targets.items()},
            "coords": {path: one.coords for path, one in adapter.layout.targets.items()},
            "factors": dict(adapter.method.factors),
            "tensors": {name: list(value.shape) for name, value in adapter.state_dict().items()},
            "frozen": _frozen(adapter),
            "base": {"class": type(adapter.model[0]).__name__, "fingerprint": _fingerprint(adapter)},
        },
    }


def _frozen(adapter: Adapter) -> str | None:
    """None for frozen factors that were rounded to 16 bits with the others."""
    exact = all(value.dtype in (torch.float32, torch.float64) for value in adapter.factors.values())
    return frozen_digest(adapter) if exact else None


def _fingerprint(adapter: Adapter) -> str | None:
    """None for weights that are not here as a whole: on the meta device, or sharded."""
    weights = [layer.base.weight for layer in adapter.layers.values()]
    whole = all(type(w) in (Tensor, nn.Parameter) and not w.is_meta and w.numel() for w in weights)
    return fingerprint(adapter.model[0], list(adapter.targets)) if whole else None
