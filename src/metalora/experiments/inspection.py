"""What an adapter would be, before it is made."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from metalora.adapters.attach import plan
from metalora.adapters.placement import Place, Placement, place
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.methods.registry import method_of
from metalora.network.spec import INPUT_MODES

ADAM_BYTES = 16  # a trained float32 number: itself, its gradient and two moments


def summarise(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """What an adapter costs, from sizes alone (without a mapping net): numbers, file, compute, memory.

    Compute is multiply-adds at one token or position: k (in + out) a target, beside in x out of the base; in `bytes` a
    float32 file, in `training_bytes` the numbers, their gradients and Adam's moments.
    """
    method = method_of(config)
    placement = place(find_targets(model, config.targets, config.exclude), config, method)
    places = placement.places.values()
    added = sum(plan(one, ()).rank * (_side(one) + one.target.sizes["out"]) for one in places)
    base = sum(_side(one) * one.target.sizes["out"] for one in places)
    total = placement.num_params()
    return {
        "method": method.name,
        "formula": " ".join(method.formula.split()),
        "targets": len(places),
        "factors": {key: " ".join(map(str, one.shape)) for key, one in placement.stored.items()}
        if method.shared
        else {},
        "parameters": total,
        "base_parameters": sum(p.numel() for p in model.parameters()),
        "bytes": _file_bytes(placement),
        "training_bytes": ADAM_BYTES * total,
        "multiply_adds": added,
        "base_multiply_adds": base,
        "overhead": added / base,
    }


def _side(one: Place) -> int:
    return prod(one.target.sizes.get(mode, 1) for mode in INPUT_MODES)


def _file_bytes(placement: Placement) -> int:
    header = 90 * len(placement.stored) + 130 * len(placement.places) + 1500
    return 4 * placement.num_params() + header


def describe(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """Targets, the planned contraction of each, parameters (without the mapping net) and bytes on disk in float32."""
    method = method_of(config)
    placement = place(find_targets(model, config.targets, config.exclude), config, method)
    rows = []
    for one in placement.places.values():
        cut = plan(one, ())
        rows.append(
            {
                "target": one.target.path,
                "shape": " ".join(f"{mode}={size}" for mode, size in one.target.sizes.items()),
                "left": repr(cut.kernel),
                "mid": repr(cut.mix) if cut.mid else "identity",
                "right": repr(cut.expand),
                "k": cut.rank,
                "parameters": sum(prod(placement.stored[view.key].shape) for view in one.views.values()),
            }
        )
    total = placement.num_params()
    return {
        "method": method.name,
        "formula": " ".join(method.formula.split()),
        "targets": rows,
        "parameters": total,
        "bytes": _file_bytes(placement),
    }
