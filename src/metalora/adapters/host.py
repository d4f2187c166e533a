"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from metalora.adapters.conditioning.active import values_of_forward

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Condition


class Host(Protocol):
    """What prepares the adapters of a model for a forward, and clears up after it."""

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the condition and the task ids out of the arguments, and enter the forward."""
        ...

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave the forward; `output` is None if it raised."""
        ...


def begin_forward(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Make an adapter ready for a forward of the model: cut the stacks into slices, choose the condition.

    Args:
        adapter: The adapter.
        condition: The condition that the caller has passed, or None.
        task_ids: The task ids that the caller has passed, or None.
        args: The positional arguments of the model's forward.
        kwargs: Its other arguments, and `prompt_mask` for a condition that is made from a prompt.

    Raises:
        ValueError: The adapter starts from data and has not got any.
    """
    adapter.check_started()
    adapter.state.begin_forward(adapter)
    if adapter.per_example:
        adapter.state.values = values_of_forward(adapter, condition, task_ids, args, kwargs)


def end_forward(adapter: Adapter, output: Any) -> None:
    """Forget what `begin_forward` made ready, except for those who continue the sequences of the output."""
    if output is not None:
        adapter.condition_cache.keep(output, adapter.state.values)
    adapter.recorder.stop()
    adapter.state.end_forward()


class AttachedHost:
    """The host of an attached model: one adapter, and normalisation layers that stay in eval mode.

    Args:
        adapter: The adapter.
        frozen_norms: The normalisation layers whose statistics are not to change.
    """

    def __init__(self, adapter: Adapter, frozen_norms: Sequence[nn.Module]):
        self.adapter = adapter
        self.frozen_norms = list(frozen_norms)

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take `condition=`, `task_ids=` and `prompt_mask=` out of the arguments, and enter the forward.

        Raises:
            ValueError: The adapter is merged, and the caller has passed a condition or task ids.
        """
        adapter = self.adapter
        for norm in self.frozen_norms:  # at each forward, since `model.train()` switches them on again
            norm.training = False
        condition = kwargs.pop("condition", None)
        task_ids = kwargs.pop("task_ids", None) if adapter.task_keys else None
        inputs = dict(kwargs)
        if adapter.reads_prompt:
            kwargs.pop("prompt_mask", None)
        if adapter.state.enabled and not adapter.merged:
            begin_forward(adapter, condition, task_ids, args, inputs)
        elif adapter.merged and not (condition is None and task_ids is None):
            raise ValueError("the adapter is merged, so a forward takes no condition and no task_ids; unmerge it first")
        return args, kwargs

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave the forward: no condition outlives it."""
        if self.adapter.state.enabled:
            end_forward(self.adapter, output)


def guard_forward(model: nn.Module, host: Host) -> list[RemovableHandle]:
    """Let a host run around every forward of a model.

    `model.forward` becomes a `functools.partial` that enters and leaves the host, also after KeyboardInterrupt and
    GeneratorExit, for which torch runs no forward hooks. It has the signature of the model's own forward, and copies,
    pickles, torch.export and torch.compile take it. If somebody replaces `model.forward` later (trainers do), two
    hooks do the same in its place.

    Args:
        model: The model; its `forward` is replaced.
        host: What runs before and after.

    Returns:
        The handles of the hooks; `unguard_forward` gives the model its forward back.
    """
    replaced = vars(model).get("forward")  # None if the model runs the forward of its class
    # A partial of a function at module level: a closure could not be pickled.
    guarded = functools.partial(_guarded, model, host, replaced)
    functools.update_wrapper(guarded, model.forward)
    model.forward = guarded
    return [
        model.register_forward_pre_hook(functools.partial(_hook_before, host), with_kwargs=True),
        model.register_forward_hook(functools.partial(_hook_after, host), always_call=True),
    ]


def _is_guarded(model: nn.Module) -> bool:
    """Return True if `model.forward` is the one that `guard_forward` has set, and not a wrapper around it."""
    forward = vars(model).get("forward")
    return isinstance(forward, functools.partial) and forward.func is _guarded


def _guarded(model: nn.Module, host: Host, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Run a model's forward between a host's `before_forward` and `after_forward`."""
    if not _is_guarded(model):  # a wrapper around this one stands in `model.forward`: the hooks have entered the host
        return _own_forward(model, replaced, args, kwargs)
    output = None
    try:  # `finally` also runs if `before_forward` raises after it has entered
        args, kwargs = host.before_forward(model, args, kwargs)
        output = _own_forward(model, replaced, args, kwargs)
        return output
    finally:
        host.after_forward(model, args, output)


def _own_forward(
    model: nn.Module, replaced: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the forward that the model had before: that of its class, or one set on the instance (`replaced`)."""
    return type(model).forward(model, *args, **kwargs) if replaced is None else replaced(*args, **kwargs)


def _hook_before(host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None if _is_guarded(model) else host.before_forward(model, args, kwargs)


def _hook_after(host: Host, model: nn.Module, args: Any, output: Any) -> None:
    if not _is_guarded(model):
        host.after_forward(model, args, output)


def unguard_forward(model: nn.Module) -> None:
    """Give a model the forward back that it had; nothing if another wrapper stands there now."""
    if not _is_guarded(model):
        return
    guarded = model.forward
    assert isinstance(guarded, functools.partial)
    del model.forward
    if guarded.args[2] is not None:  # the argument `replaced` of `_guarded`
        model.forward = guarded.args[2]
