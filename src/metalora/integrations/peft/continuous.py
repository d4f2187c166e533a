"""Continuous batching of a PEFT model: one condition for all requests, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from metalora.adapters.replaced_method import NAME_AND_DOC, own_method, replace_method, restore_method

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.integrations.peft.container import AdapterContainer


def guard_continuous_batching(model: nn.Module, container: AdapterContainer) -> None:
    """Let a model refuse continuous batching if its adapters differ by request; do nothing if it has none.

    The steps run in a thread of their own, which sees what is fixed, and no `using` block and no argument of a call.

    Args:
        model: A model of transformers; its `generate_batch` and `init_continuous_batching` are replaced.
        container: Its adapters.
    """
    for name, function in _FUNCTIONS.items():
        if callable(getattr(model, name, None)):
            replace_method(model, name, function, container, NAME_AND_DOC)


def unguard_continuous_batching(model: nn.Module) -> None:
    """Give a model the methods back that it had."""
    for name, function in _FUNCTIONS.items():
        restore_method(model, name, function)


def _generate_batch(
    model: nn.Module, container: AdapterContainer, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any
) -> Any:
    """Write a text for each prompt; arguments that transformers would ignore are refused."""
    for name in ("condition", "task_ids", "adapter_names"):
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"generate_batch takes no {name}=..., since {_ONE_FOR_ALL}")
    return own_method(model, "generate_batch", replaced)(*args, **kwargs)


def _init_continuous_batching(
    model: nn.Module, container: AdapterContainer, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any
) -> Any:
    """Make a manager, if all of its requests run under the same condition."""
    running = container.running_adapters()
    for name, adapter in running.items():
        _check_fixed(name, adapter)
    manager = own_method(model, "init_continuous_batching", replaced)(*args, **kwargs)
    if any(adapter.per_example for adapter in running.values()):
        # A manager that is kept would find blocks that were filled under an earlier condition.
        manager.continuous_batching_config.allow_block_sharing = False
    return manager


def _check_fixed(name: str, adapter: Adapter) -> None:
    """Raise a ValueError unless a fixed condition serves all requests."""
    if not adapter.current().enabled:
        raise ValueError(
            "continuous batching inside of disabled(): it runs in a thread of its own, where the adapter stays on: use "
            "generate"
        )
    block, fixed = adapter.blocks.active.get().values, adapter.fixed_condition
    if adapter.per_example and (fixed is None or (block is not None and block is not fixed.values)):
        raise ValueError(f"continuous batching: adapter {name!r} differs by request, and {_ONE_FOR_ALL}")


_ONE_FOR_ALL = (
    "all requests of a PeftModel run under one condition: fix one for all with adapter.fix(condition), or attach the "
    "adapter with metalora.attach, whose generate_batch takes a condition or a task for each prompt"
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "generate_batch": _generate_batch,
    "init_continuous_batching": _init_continuous_batching,
}
