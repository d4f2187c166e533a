"""Activation checkpointing with the condition as an explicit input.

torch recomputes a checkpointed block during backward. At this time the condition of its forward is no longer active,
or another condition is, and a `disabled` block may have ended. If the generated factors are arguments of the block, the
result is exact: in both modes of torch (reentrant and not), and with two forwards before a backward.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch.utils.checkpoint
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import required_adapter

TORCH_CHECKPOINT = torch.utils.checkpoint.checkpoint


def checkpoint(function: Callable[..., Any], *args: Any, adapter: Adapter, **options: Any) -> Any:
    """Call torch.utils.checkpoint.checkpoint(function, *args, **options), so that it is correct for generated factors.

    Args:
        function: The part of the model whose activations are recomputed.
        args: Arguments of the function.
        adapter: The adapter of the model.
        options: Options of torch's checkpoint, such as `use_reentrant`, and keyword arguments of the function.

    Returns:
        What the function returns.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> checkpoint(model[0], torch.rand(3, 8), adapter=adapter, use_reentrant=False).shape
        torch.Size([3, 8])
    """
    function, args = explicit(function, args, adapter)
    return TORCH_CHECKPOINT(function, *args, **options)


def explicit(
    function: Callable[..., Any], args: tuple[Any, ...], adapter: Adapter
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function that takes the values of the active condition before its arguments, and all its arguments.

    The function runs with the adapter on or off, as it is now, also when it is computed again later.

    Args:
        function: A part of the model.
        args: Its arguments.
        adapter: The adapter of the model.

    Returns:
        The new function and its arguments.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> x = torch.rand(3, 8)
        >>> with adapter.disabled():
        ...     function, args = explicit(model[0], (x,), adapter)
        >>> torch.equal(function(*args), model[0].base(x))
        True
    """
    current = adapter.current()
    enabled = current.enabled
    # None: factors that are the same for all examples are read again in a recomputation.
    values = None if current.values is None else dict(current.values)
    keys = list(values or {})

    # The values are arguments, not a closure: reentrant checkpointing gives gradients to arguments alone.
    def run(*inputs: Any, **kwargs: Any) -> Any:
        given = None if values is None else dict(zip(keys, inputs[: len(keys)], strict=True))
        # The depth of now: blocks that are entered when it is computed again do not count.
        with adapter.state.part(enabled, adapter.blocks.active.get().depth, given):
            return function(*inputs[len(keys) :], **kwargs)

    return run, (*(values or {}).values(), *args)


@contextlib.contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside of this context, make the checkpointing of a model itself (timm, Hugging Face, torch) carry the condition.

    Args:
        model: A model with an adapter.

    Yields:
        Nothing.

    Raises:
        ValueError: The model has no adapter.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> with checkpointing(model):
        ...     torch.utils.checkpoint.checkpoint(model, torch.rand(3, 8), use_reentrant=False).shape
        torch.Size([3, 2])
    """
    adapter = required_adapter(model, "checkpointing")

    def carrying(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return checkpoint(function, *args, adapter=adapter, **options)

    # transformers reads its function from the modules, timm and torch call `torch.utils.checkpoint.checkpoint`.
    holders: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    originals = [holder._gradient_checkpointing_func for holder in holders]
    torch.utils.checkpoint.checkpoint = wraps(TORCH_CHECKPOINT)(carrying)  # type: ignore[assignment]
    try:
        for holder, original in zip(holders, originals, strict=True):
            # transformers stores a partial of torch's function, with the options that the user has chosen
            holder._gradient_checkpointing_func = partial(carrying, **getattr(original, "keywords", {}))
        yield
    finally:
        torch.utils.checkpoint.checkpoint = TORCH_CHECKPOINT
        for holder, original in zip(holders, originals, strict=True):
            holder._gradient_checkpointing_func = original
