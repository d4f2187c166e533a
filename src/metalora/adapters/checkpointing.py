"""Activation checkpointing with the condition as an explicit input.

torch recomputes a checkpointed block during backward, when the condition of its forward is no longer active (or
another one is). Passing the generated factors as arguments makes both modes, and two forwards before a backward, exact.
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
    """torch.utils.checkpoint.checkpoint(function, *args, **options), correct for generated factors."""
    function, args = explicit(function, args, adapter)
    return TORCH_CHECKPOINT(function, *args, **options)


def explicit(
    function: Callable[..., Any], args: tuple[Any, ...], adapter: Adapter
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that takes the active condition before its own arguments, and those; as it is where none is active."""
    if adapter.state.values is None:
        return function, args
    keys, values = list(adapter.state.values), tuple(adapter.state.values.values())

    def run(*inputs: Any, **kwargs: Any) -> Any:
        with adapter.using(dict(zip(keys, inputs[: len(keys)], strict=True))):
            return function(*inputs[len(keys) :], **kwargs)

    return run, (*values, *args)


@contextlib.contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Make the checkpointing that a model does itself (timm, Hugging Face, torch) carry the condition, inside."""
    adapter = required_adapter(model, "checkpointing")

    def carrying(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return checkpoint(function, *args, adapter=adapter, **options)

    holders: list[Any] = [m for m in model.modules() if hasattr(m, "_gradient_checkpointing_func")]
    before = [holder._gradient_checkpointing_func for holder in holders]
    torch.utils.checkpoint.checkpoint = wraps(TORCH_CHECKPOINT)(carrying)  # type: ignore[assignment]
    try:
        for holder, original in zip(holders, before, strict=True):
            # transformers keeps a partial of torch's function, with the options that the user has chosen
            holder._gradient_checkpointing_func = partial(carrying, **getattr(original, "keywords", {}))
        yield
    finally:
        torch.utils.checkpoint.checkpoint = TORCH_CHECKPOINT
        for holder, original in zip(holders, before, strict=True):
            holder._gradient_checkpointing_func = original
