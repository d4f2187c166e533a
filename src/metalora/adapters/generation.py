"""A call of `generate`: its condition is chosen once, before the first forward, and holds for all of its forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from metalora.adapters.conditioning.active import values_of_generation
from metalora.adapters.conditioning.condition import Condition, Values
from metalora.adapters.conditioning.generation import (
    examples_of,
    positions_of,
    prompt_of,
    sequences_per_example,
)
from metalora.adapters.replaced_method import NAME_AND_DOC, own_method, replace_method, restore_method

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.host import Host


def generate(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the `generate` of an adapter's model under a condition; see `Adapter.generate`."""
    own = getattr(adapter.model, "generate", None)
    if not callable(own):
        raise ValueError(
            f"generate: {type(adapter.model).__name__} has no method `generate`: expected a model of transformers that "
            "writes texts, such as a LlamaForCausalLM"
        )
    if condition is not None:
        kwargs["condition"] = condition
    if task_ids is not None:
        kwargs["task_ids"] = task_ids
    if not adapter.per_example:
        check_no_condition(adapter, condition, task_ids)
    return own(*args, **kwargs)


def check_no_condition(adapter: Adapter, condition: Any, task_ids: Any) -> None:
    """Raise a ValueError if a condition or task ids are passed to an adapter that has the same factors for all."""
    name = "condition" if condition is not None else "task_ids" if task_ids is not None else None
    if name is not None:
        raise ValueError(
            f"{name}=...: no factor of this {adapter.method.name} differs by example or task, so that it would have no "
            "effect: leave it out, or attach a method with tasks or with a generated factor"
        )


@contextlib.contextmanager
def generating(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Within this context every forward, and every part of the model, runs under the condition of a call of `generate`.

    Args:
        adapter: An adapter whose factors differ by example.
        condition: The condition that the caller has passed, or None.
        task_ids: The task ids that the caller has passed, or None.
        args: The positional arguments of `generate`.
        kwargs: Its other arguments.

    Raises:
        ValueError: As in a forward, or the condition is for another number of examples than the prompt has.
    """
    adapter.check_started()
    if len(args) > 1:
        kwargs = {**kwargs, "generation_config": args[1]}
    sequences = sequences_per_example(adapter.model, kwargs)
    prompt = prompt_of(adapter.model, args, kwargs)
    with torch.no_grad():
        values = values_of_generation(adapter, condition, task_ids, prompt, kwargs)
    if values is not None and prompt is not None:
        _check_examples(values, examples_of(adapter.model, prompt), sequences)
    expected = positions_of(prompt) if values is None and prompt is not None else None
    with adapter.blocks.entered(values=values, beams=sequences, prompt=expected):
        yield


def _check_examples(values: Values, examples: int, sequences: int) -> None:
    """Raise a ValueError unless values are for the examples of a prompt, for one, or for all of its sequences."""
    conditions = max(map(len, values.values()), default=1)
    if conditions not in (1, examples, examples * sequences):
        more = f", or one for each of its {examples * sequences} sequences" if sequences > 1 else ""
        raise ValueError(
            f"generate: the condition is for {conditions} examples, and the prompt has {examples}: expected one for "
            f"each of them{more}, or a single one for all"
        )


# ---- around the model's own `generate` -------------------------------------------------------------------------------
def guard_generate(model: nn.Module, host: Host) -> None:
    """Let a host run around every call of a model's `generate`; do nothing for a model that has none.

    As in `guard_forward`, `model.generate` becomes a `functools.partial` that copies and pickles.

    Args:
        model: The model; its `generate` is replaced.
        host: What runs around it.
    """
    if callable(getattr(model, "generate", None)):
        replace_method(model, "generate", _guarded, host, NAME_AND_DOC)


def _guarded(model: nn.Module, host: Host, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Run a model's `generate` under the condition that a host takes out of its arguments."""
    with host.generating(model, args, kwargs) as own_arguments:
        return own_method(model, "generate", replaced)(*args, **own_arguments)


def unguard_generate(model: nn.Module) -> None:
    """Give a model the `generate` back that it had; nothing if another wrapper stands there now."""
    restore_method(model, "generate", _guarded)
