"""The Delta W of an adapter for one condition and one task: what a plain LoRA of it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.exportable import linear_layers


@torch.no_grad()
def low_rank_updates(
    adapter: Adapter, condition: Condition | None = None, task: int | None = None
) -> dict[str, LowRankUpdate]:
    """Return Delta W of every target as a low-rank pair, exactly; `combine` and `convert_loras` take it.

    Args:
        adapter: An adapter that is not merged.
        condition: The condition of one example, for an adapter with generated factors.
        task: Number of the task, for an adapter with tasks.

    Returns:
        Module path -> update, with down (rank, in, *kernel) and up (out, rank), at least in float32.

    Raises:
        ValueError: No condition or task is given although Delta W depends on it, or one that does not fit; the adapter
            is merged, is not linear in its input, or does more than add Delta W (biases, the magnitudes of DoRA).

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> update = low_rank_updates(attach(model, AdapterConfig("lora", rank=2, targets=("0",))))["0"]
        >>> tuple(update.down.shape), tuple(update.up.shape)
        ((2, 8), (4, 2))
    """
    verb = "low_rank_updates"
    layers = linear_layers(adapter, verb)
    values = snapshot(adapter, condition, task, verb) or None
    updates = {}
    for path, layer in layers.items():
        more = "biases" if layer.shift(values) is not None else "magnitudes" if layer.bound.rescalers else ""
        if more:
            raise ValueError(f"{verb}: target {path!r}: {adapter.method.name} has {more}, which are no part of Delta W")
        left, right = layer.pair(values)  # (k, i, *kernel) and (k, o)
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise ValueError(f"{verb}: the factors of target {path!r} are not finite")
        dtype = torch.promote_types(left.dtype, torch.float32)
        # copies: Left of a LoRA is the factor itself, which training would change
        updates[path] = LowRankUpdate(left.detach().to(dtype, copy=True), right.detach().mT.to(dtype, copy=True))
    return updates


def snapshot(
    adapter: Adapter, condition: Condition | None, task: int | None, verb: str = "export"
) -> dict[str, Tensor]:
    """Return the values of all factors that differ by example, for one condition and one task.

    Args:
        adapter: The adapter.
        condition: The condition of one example; None takes the one that the adapter is fixed to, if there is one.
        task: Number of the task, or None.
        verb: What the values are for, the first word of errors.

    Returns:
        Factor key -> value, (1, *shape of the factor).

    Raises:
        ValueError: No condition or task is given although Delta W depends on it, or one that does not fit.
    """
    method = adapter.method.name
    if condition is not None and not adapter.per_example:
        raise ValueError(f"{verb}: {method} has no generated factors here, so a condition means nothing")
    if condition is None:
        condition = adapter.fixed_condition
    if condition is not None and len(condition) != 1:
        raise ValueError(f"{verb}: the condition is for {len(condition)} examples; take one (condition.mean())")
    if condition is not None:
        check_condition(adapter, condition)
    values = {} if condition is None else dict(condition.values)
    if task is not None:
        values |= adapter.task(task).values
    _check_generated(adapter, values, verb)
    if any(key not in values for key in adapter.task_keys):
        raise ValueError(f"{verb}: {method} has {adapter.config.tasks} tasks: name one; export_lora also writes all")
    return values


def _check_generated(adapter: Adapter, values: Mapping[str, Tensor], verb: str) -> None:
    """Raise a ValueError unless the values hold every generated factor."""
    for key in adapter.conditioner.shapes if adapter.conditioner is not None else ():
        if key not in values:
            raise ValueError(
                f"{verb}: {adapter.method.name} makes {key!r} from a condition, pass condition=... "
                "(adapter.condition(inputs) makes one per example, .mean() of it is one for all)"
            )
