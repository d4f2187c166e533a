"""The methods of a model that start continuous batching, as those of an adapted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.continuous.manager import check_can_serve, check_reachable, prompts_of, serve_tenants
from metalora.adapters.generation import check_no_condition
from metalora.adapters.replaced_method import NAME_AND_DOC, own_method, replace_method, restore_method

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


def guard_continuous_batching(model: nn.Module, adapter: Adapter) -> None:
    """Let `model.generate_batch` and the managers of a model run each request under its own condition.

    Do nothing for a model that has no continuous batching.

    Args:
        model: A model of transformers; its `generate_batch` and `init_continuous_batching` are replaced.
        adapter: Its adapter.
    """
    for name, function in _FUNCTIONS.items():
        if callable(getattr(model, name, None)):
            replace_method(model, name, function, adapter, NAME_AND_DOC)


def unguard_continuous_batching(model: nn.Module) -> None:
    """Give a model the methods back that it had; those that another wrapper stands around stay."""
    for name, function in _FUNCTIONS.items():
        restore_method(model, name, function)


def generate_batch(
    adapter: Adapter,
    prompts: Sequence[Sequence[int]],
    condition: Condition | None,
    task_ids: Any,
    options: dict[str, Any],
) -> Any:
    """Call the `generate_batch` of an adapter's model; see `Adapter.generate_batch`."""
    own = getattr(adapter.model, "generate_batch", None)
    if not callable(own):
        raise ValueError(
            f"generate_batch: {type(adapter.model).__name__} has no continuous batching: expected a decoder of "
            "transformers 5, such as a LlamaForCausalLM; `generate` takes any model that writes texts"
        )
    return own(prompts, condition=condition, task_ids=task_ids, **options)


def _generate_batch(
    model: nn.Module,
    adapter: Adapter,
    replaced: Callable[..., Any] | None,
    inputs: Sequence[Sequence[int]],
    *args: Any,
    condition: Condition | None = None,
    task_ids: Any = None,
    **kwargs: Any,
) -> Any:
    """Write a text for each prompt, under its condition and its task."""
    own = own_method(model, "generate_batch", replaced)
    check_reachable(adapter)
    if not adapter.per_example or adapter.merged:
        _check_no_effect(adapter, condition, task_ids)
        return own(inputs, *args, **kwargs)
    return own(prompts_of(adapter, inputs, condition, task_ids), *args, **kwargs)


def _check_no_effect(adapter: Adapter, condition: Condition | None, task_ids: Any) -> None:
    """Raise a ValueError if a condition or task ids are passed to an adapter that has no use for them."""
    if adapter.merged and (condition is not None or task_ids is not None):
        raise ValueError(
            "the adapter is merged, so generate_batch takes no condition and no task_ids; unmerge it first"
        )
    check_no_condition(adapter, condition, task_ids)


def _init_continuous_batching(
    model: nn.Module, adapter: Adapter, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any
) -> Any:
    """Make a manager whose requests have a condition or a task each."""
    own = own_method(model, "init_continuous_batching", replaced)
    check_reachable(adapter)
    if not adapter.per_example or adapter.merged:
        return own(*args, **kwargs)
    check_can_serve(adapter, args[1] if len(args) > 1 else kwargs.get("continuous_batching_config"))
    manager = own(*args, **kwargs)
    serve_tenants(manager, adapter)
    return manager


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "generate_batch": _generate_batch,
    "init_continuous_batching": _init_continuous_batching,
}
