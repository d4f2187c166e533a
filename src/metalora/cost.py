"""What an adapter would be, before it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from metalora.adapters.attach import plan
from metalora.adapters.layout.layout import Layout, TargetLayout, build_layout
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.registry import method_of
from metalora.tensornet.spec import INPUT_MODES

ADAM_BYTES = 16  # a trained float32 number: itself, its gradient and two moments


def matched(model: nn.Module, config: AdapterConfig, params: int) -> AdapterConfig:
    """The configuration of the largest rank whose learned numbers are at most `params` (isoparameter).

    All bonds have one rank, lowered where modes are smaller (clip_rank), but for the one bond of a method that takes
    any rank. ValueError: not even the smallest rank fits, or more numbers than any rank could have.
    """
    method, targets = method_of(config), find_targets(model, config.targets, config.exclude)
    step = config.experts if method.split_rank else 1
    clip = not (method.any_rank and len(method.ranked) == 1)

    def at(times: int) -> tuple[AdapterConfig, int]:
        tried = replace(config, rank=step * times, clip_rank=clip)
        return tried, build_layout(targets, tried, method).num_params()

    if at(1)[1] > params:
        raise ValueError(f"match_params {params}: {method.name!r} has {at(1)[1]} numbers at rank {step}, the smallest")
    return at(_largest(lambda times: at(times)[1], params, f"match_params {params}: {method.name!r}"))[0]


def _largest(count: Callable[[int], int], limit: int, where: str) -> int:
    """The largest argument whose count, which never falls, is at most the limit; its count at 1 is.

    Where the limit is the most that any argument has: the smallest of these.
    """
    low, high = 1, 2
    while (most := count(high)) <= limit:
        if most == count(2 * high):
            if most < limit:
                raise ValueError(f"{where} has {most} numbers at most, at any rank")
            return _last(lambda k: count(k) < limit, 0, high) + 1
        low, high = high, 2 * high
    return _last(lambda k: count(k) <= limit, low, high)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number at which it holds, by bisection: it does at `low`, and at `high` no more."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _ranks(layout: Layout, method: Method) -> dict[str, int]:
    """Bond -> its size, the largest over targets."""
    found: dict[str, int] = {}
    for one in layout.targets.values():
        for bond in method.ranked:
            found[bond] = max(found.get(bond, 0), one.sizes.get(bond, 0))
    return found


def summarise(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """What an adapter costs, from sizes alone (without a mapping net): numbers, file, compute, memory.

    Compute is multiply-adds at one token or position: k (in + out) a target, beside in x out of the base; in `bytes` a
    float32 file, in `training_bytes` the numbers, their gradients and Adam's moments.
    """
    method = method_of(config)
    layout = build_layout(find_targets(model, config.targets, config.exclude), config, method)
    places = layout.targets.values()
    added = sum(plan(one, ()).per_position for one in places)
    base = sum(_side(one) * one.target.sizes["out"] for one in places)
    total = layout.num_params()
    return {
        "method": method.name,
        "formula": " ".join(method.formula.split()),
        "ranks": _ranks(layout, method),
        "targets": len(places),
        "factors": {
            key: " ".join(map(str, one.shape)) + " frozen" * one.frozen
            for key, one in layout.params.items()
            if not one.owner
        },
        "parameters": total,
        "base_parameters": sum(p.numel() for p in model.parameters()),
        "bytes": _file_bytes(layout),
        "training_bytes": ADAM_BYTES * total,
        "multiply_adds": added,
        "base_multiply_adds": base,
        "overhead": added / base,
    }


def _side(one: TargetLayout) -> int:
    return prod(one.target.sizes.get(mode, 1) for mode in INPUT_MODES)


def _file_bytes(layout: Layout) -> int:
    header = 90 * sum(not one.frozen for one in layout.params.values()) + 130 * len(layout.targets) + 1500
    return 4 * layout.num_params() + header


def describe(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """Targets, the planned contraction of each, parameters (without the mapping net) and bytes on disk in float32."""
    method = method_of(config)
    layout = build_layout(find_targets(model, config.targets, config.exclude), config, method)
    rows = []
    for one in layout.targets.values():
        cut = plan(one, ())
        left, mid, right = cut.described
        rows.append(
            {
                "target": one.target.path,
                "shape": " ".join(f"{mode}={size}" for mode, size in one.target.sizes.items()),
                "left": left,
                "mid": mid,
                "right": right,
                "k": cut.rank,
                "parameters": sum(
                    prod(layout.params[view.key].shape)
                    for view in one.views.values()
                    if not layout.params[view.key].frozen
                ),
            }
        )
    total = layout.num_params()
    return {
        "method": method.name,
        "formula": " ".join(method.formula.split()),
        "targets": rows,
        "parameters": total,
        "bytes": _file_bytes(layout),
    }
