"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from metalora.adapters.conditioning.active import values_of_forward
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.generation import check_no_condition, generating
from metalora.adapters.replaced_method import is_replaced, replace_method, restore_method

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


class Host(Protocol):
    """What prepares the adapters of a model for a forward, and clears up after it."""

    def enter_forward(self, caller: FrameType | None) -> None:
        """Enter a forward, which `caller` will end; raises nothing, so that `after_forward` always fits."""
        ...

    def has_entered(self, caller: FrameType | None) -> bool:
        """Return True if the innermost forward is one that `caller` has entered."""
        ...

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the condition and the task ids out of the arguments, and make the adapters ready."""
        ...

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave the forward; `output` is None if it raised."""
        ...

    def generating(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Run a call of `generate` inside, under its condition; gives the arguments that are the model's own."""
        ...


def enter_forward(adapter: Adapter, caller: FrameType | None) -> None:
    """Enter a forward of the model, which `caller` will end if that is a frame; raises nothing."""
    active, outer = adapter.blocks.active.get(), adapter.state.forward
    if outer is not None and outer.caller is not None:
        outer = adapter.state.forget_unfinished()
    enabled = active.enabled and (outer is None or outer.enabled)
    adapter.state.enter(enabled, active.depth, caller)


def has_entered(adapter: Adapter, caller: FrameType | None) -> bool:
    """Return True if the innermost forward of an adapter is one that `caller` has entered."""
    return adapter.state.forward is not None and adapter.state.forward.caller is caller


def begin_forward(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Make an adapter ready for the forward that it has entered: cut the stacks into slices, choose the condition.

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
    adapter.state.begin(adapter)
    forward = adapter.state.forward
    assert forward is not None, "`enter_forward` comes before `begin_forward`"
    if adapter.recorder.active:  # an outer forward, in a hook of which this one runs, waits for its stem
        forward.recording = adapter.recorder.suspend()
    if adapter.per_example:
        forward.values = values_of_forward(adapter, condition, task_ids, args, kwargs)


def end_forward(adapter: Adapter, output: Any) -> None:
    """Leave a forward, and forget all of it except for those who continue the sequences of the output."""
    forward = adapter.state.forward
    if forward is None:
        return
    if forward.enabled:
        if output is not None:
            adapter.condition_cache.keep(output, forward.values)
        adapter.recorder.stop()
        if forward.recording is not None:
            adapter.recorder.resume(forward.recording)
    adapter.state.leave()


class AttachedHost:
    """The host of an attached model: one adapter, and normalisation layers that stay in eval mode.

    Args:
        adapter: The adapter.
        frozen_norms: The normalisation layers whose statistics are not to change.
    """

    def __init__(self, adapter: Adapter, frozen_norms: Sequence[nn.Module]):
        self.adapter = adapter
        self.frozen_norms = list(frozen_norms)
        self.own_names = argument_names(adapter.model)

    def enter_forward(self, caller: FrameType | None) -> None:
        """Enter a forward, which `caller` will end."""
        enter_forward(self.adapter, caller)

    def has_entered(self, caller: FrameType | None) -> bool:
        """Return True if the innermost forward is one that `caller` has entered."""
        return has_entered(self.adapter, caller)

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take `condition=`, `task_ids=` and `prompt_mask=` out of the arguments, and make the adapter ready.

        Raises:
            ValueError: The caller has passed a condition or task ids that would have no effect: the adapter is merged
                or disabled, or has the same factors for all.
        """
        adapter = self.adapter
        forward = adapter.state.forward
        assert forward is not None, "`enter_forward` comes before `before_forward`"
        for norm in self.frozen_norms:  # at each forward, since `model.train()` switches them on again
            norm.training = False
        condition, task_ids = take_arguments(adapter, self.own_names, kwargs)
        inputs = dict(kwargs)
        if adapter.reads_prompt:
            kwargs.pop("prompt_mask", None)
        active = adapter.blocks.active.get()
        if not forward.enabled:
            active.check_generators()
        if forward.outer is None or forward.enabled:  # not what the library itself runs frozen, such as a user's loss
            check_can_use(adapter, forward.enabled, condition, task_ids)
        if forward.enabled and not adapter.merged:
            begin_forward(adapter, condition, task_ids, args, inputs)
        return args, kwargs

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave the forward: no condition outlives it."""
        end_forward(self.adapter, output)

    @contextlib.contextmanager
    def generating(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Run a call of `generate` inside, under the condition and the task ids in its arguments.

        Raises:
            ValueError: As for a forward.
        """
        adapter, own_arguments = self.adapter, dict(kwargs)
        condition, task_ids = take_arguments(adapter, self.own_names, own_arguments)
        enabled = adapter.current().enabled
        check_can_use(adapter, enabled, condition, task_ids)
        runs = enabled and adapter.per_example and not adapter.merged
        with generating(adapter, condition, task_ids, args, own_arguments) if runs else contextlib.nullcontext():
            yield own_arguments


def take_arguments(
    adapter: Adapter, own_names: Collection[str], kwargs: dict[str, Any]
) -> tuple[Condition | None, Any]:
    """Take `condition` and `task_ids` out of the arguments of a call; those that the model has itself stay there.

    Args:
        adapter: The adapter.
        own_names: Which of the two names the model's own forward has.
        kwargs: The keyword arguments of the call; they are changed.

    Returns:
        The condition and the task ids that are for the adapter, None if there are none.

    Raises:
        ValueError: The condition is no `Condition`.
    """
    condition = kwargs.get("condition")
    if isinstance(condition, Condition) or "condition" not in own_names:
        kwargs.pop("condition", None)
        if not (condition is None or isinstance(condition, Condition)):
            raise ValueError(f"condition: expected a metalora.Condition, got a {type(condition).__name__}")
    else:
        condition = None
    takes_tasks = bool(adapter.task_keys) or "task_ids" not in own_names
    return condition, kwargs.pop("task_ids", None) if takes_tasks else None


def argument_names(model: nn.Module) -> frozenset[str]:
    """Return which of the names `condition` and `task_ids` the forward of a model has itself; `**kwargs` is no name.

    Example:
        >>> argument_names(nn.Linear(4, 2))
        frozenset()
    """
    return frozenset({"condition", "task_ids"} & {*inspect.signature(model.forward).parameters})


def check_can_use(adapter: Adapter, enabled: bool, condition: Condition | None, task_ids: Any) -> None:
    """Raise a ValueError if a condition or task ids are passed where they have no effect."""
    if condition is None and task_ids is None:
        return
    if not enabled:
        if condition is not None:
            raise ValueError("condition=... inside of disabled(), where the frozen base runs: leave one of the two out")
        return  # task ids belong to a batch as labels do, and may be there
    if adapter.merged:
        raise ValueError("the adapter is merged, so a forward takes no condition and no task_ids; unmerge it first")
    if not adapter.per_example:
        check_no_condition(adapter, condition, task_ids)


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
    replace_method(model, "forward", _guarded, host)
    return [
        model.register_forward_pre_hook(functools.partial(_hook_before, host), with_kwargs=True),
        model.register_forward_hook(functools.partial(_hook_after, host), always_call=True),
    ]


def _is_guarded(model: nn.Module) -> bool:
    """Return True if `model.forward` is the one that `guard_forward` has set, and not a wrapper around it."""
    return is_replaced(model, "forward", _guarded)


def _guarded(model: nn.Module, host: Host, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Run a model's forward between a host's `before_forward` and `after_forward`."""
    if not _is_guarded(model):  # a wrapper around this one stands in `model.forward`: the hooks have entered the host
        return own_forward(model, replaced, args, kwargs)
    output = None
    host.enter_forward(None)
    try:
        args, kwargs = host.before_forward(model, args, kwargs)
        output = own_forward(model, replaced, args, kwargs)
        return output
    finally:
        host.after_forward(model, args, output)


def own_forward(
    model: nn.Module, replaced: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the forward that the model had before: that of its class, or one set on the instance (`replaced`)."""
    return type(model).forward(model, *args, **kwargs) if replaced is None else replaced(*args, **kwargs)


def _hook_before(host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _is_guarded(model):
        return None
    host.enter_forward(_calling_frame())
    return host.before_forward(model, args, kwargs)


def _hook_after(host: Host, model: nn.Module, args: Any, output: Any) -> None:
    # torch also calls it if the hook of somebody else has raised before `_hook_before`.
    if not _is_guarded(model) and host.has_entered(_calling_frame()):
        host.after_forward(model, args, output)


def _calling_frame() -> FrameType | None:
    """Return the frame of torch that calls a module with its hooks; None under torch.compile."""
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame


def unguard_forward(model: nn.Module) -> None:
    """Give a model the forward back that it had; nothing if another wrapper stands there now."""
    restore_method(model, "forward", _guarded)
