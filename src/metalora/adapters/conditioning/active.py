"""Which condition a forward of the model runs under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition, Values, merge_values
from metalora.adapters.conditioning.features import Inputs
from metalora.adapters.conditioning.generation import check_whole_prompt
from metalora.adapters.conditioning.prompt import check_not_packed, check_prompt_is_known, forward_inputs, prompt_inputs

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


def values_of_forward(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Values:
    """Return the values of the factors that differ by example, for a forward with these inputs.

    In this order: the condition that is passed, the innermost `using`, the fixed condition, the condition of the
    sequence that the key-value cache continues, a condition made from the inputs. Task ids are added to any of them.

    Raises:
        ValueError: No condition can be made (a support set or a tensor is needed), task ids are missing, or the
            condition is one of another adapter.
    """
    values = _chosen_values(adapter, condition)
    if values is None:
        continued = adapter.condition_cache.values(kwargs, needed=adapter.conditional)
        values = _from_inputs(adapter, args, kwargs, continued) if adapter.conditional else continued or {}
    return _with_tasks(adapter, values, task_ids)


def values_of_generation(
    adapter: Adapter, condition: Condition | None, task_ids: Any, prompt: Inputs | None, kwargs: Mapping[str, Any]
) -> Values | None:
    """Return the values for a whole call of `generate`, in the order of `values_of_forward`.

    Args:
        adapter: The adapter.
        condition: The condition that the caller has passed, or None.
        task_ids: The task ids that the caller has passed, or None.
        prompt: The prompt, as the model's forward takes it; None if the call does not say it.
        kwargs: The keyword arguments of `generate`, among them a key-value cache that it continues.

    Returns:
        Key of a stored factor -> its values, (n, *factor shape); None if only a forward can make them: that of a stem,
        or the first one of a call without a prompt.

    Raises:
        ValueError: As `values_of_forward`.
    """
    values = _chosen_values(adapter, condition)
    if values is None:
        values = adapter.condition_cache.values(kwargs, needed=adapter.conditional)
    if values is None and adapter.conditional:
        _check_made_from_inputs(adapter)
        if adapter.config.condition.source == "stem" or prompt is None:
            return None
        values = adapter.condition(prompt).values
    return _with_tasks(adapter, values or {}, task_ids)


def _chosen_values(adapter: Adapter, condition: Condition | None) -> Values | None:
    """The values of the condition that is passed, of the innermost `using` or of the fixed condition, in this order."""
    if condition is not None:
        check_condition(adapter, condition)
        return condition.values
    values = _values_of_blocks(adapter)
    if values is None and adapter.fixed_condition is not None:
        return adapter.fixed_condition.values
    return values


def _with_tasks(adapter: Adapter, values: Values, task_ids: Any) -> Values:
    """The values, and those of the tasks; ValueError if a task is missing."""
    if task_ids is not None:
        values = merge_values(values, adapter.task(task_ids).values)
    if any(key not in values for key in adapter.task_keys):
        raise ValueError(
            f"{adapter.method.name} has {adapter.config.tasks} tasks: call the model with task_ids=..., a number or "
            "one for each example"
        )
    return values


def _values_of_blocks(adapter: Adapter) -> Values | None:
    """The values of the innermost `using`, or of a part of the model that this forward runs in; None if neither is."""
    active, forward = adapter.blocks.active.get(), adapter.state.forward
    part = forward.outer if forward is not None else None
    if part is not None and part.given is not None and active.depth <= part.depth:
        return part.given
    if active.in_generators:
        active.check_generators()
    return active.values


def _from_inputs(
    adapter: Adapter, args: tuple[Any, ...], kwargs: Mapping[str, Any], continued: Values | None
) -> Values:
    """The values that a forward starts with; `continued` are those of the sequences that it continues."""
    config = adapter.config.condition
    inputs = forward_inputs(adapter.model, args, kwargs)
    check_not_packed(inputs)
    if config.source == "stem":  # the stem's hook replaces c0 as soon as the stem has run
        if continued is None and adapter.reads_prompt:
            check_prompt_is_known(adapter, inputs)
            inputs = prompt_inputs(inputs)
        if continued is None:
            check_whole_prompt(adapter, inputs)
        adapter.recorder.start(inputs)
        forward = adapter.state.forward
        assert forward is not None, "it is entered before its condition is chosen"
        forward.pending_values = continued
        return merge_values(continued or {}, adapter.neutral().values)
    if continued is not None:
        return continued
    _check_made_from_inputs(adapter)
    return adapter.condition(inputs).values


def _check_made_from_inputs(adapter: Adapter) -> None:
    """Raise a ValueError if the inputs of the model make no condition."""
    config = adapter.config.condition
    if config.scope == "support" or config.source == "tensor":
        source = "a support set" if config.scope == "support" else "a tensor"
        raise ValueError(
            f"this adapter's condition comes from {source}: make it with adapter.condition(...) and call "
            "model(..., condition=condition)"
        )


def after_stem(adapter: Adapter, module: nn.Module, args: Any, output: Any) -> None:
    """Make the condition from what the stem has given, in the same pass: a forward hook, with the adapter bound."""
    forward, recorder = adapter.state.forward, adapter.recorder
    if not (recorder.active and recorder.recorded and forward is not None and adapter.current().enabled):
        return
    recorder.stop()  # the stem may run again, such as in a recomputation for a checkpoint
    features = recorder.take()
    values = forward.pending_values or adapter.condition_from(features).values
    generated = {key: values[key] for key in adapter.required_conditioner().shapes}
    forward.values = {**(forward.values or {}), **generated}
