"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from metalora.adapters.conditioning.active import values_of_forward

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Condition


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
            ValueError: The adapter is merged, and the caller has passed a condition or task ids.
        """
        adapter = self.adapter
        forward = adapter.state.forward
        assert forward is not None, "`enter_forward` comes before `before_forward`"
        for norm in self.frozen_norms:  # at each forward, since `model.train()` switches them on again
            norm.training = False
        condition = kwargs.pop("condition", None)
        task_ids = kwargs.pop("task_ids", None) if adapter.task_keys else None
        inputs = dict(kwargs)
        if adapter.reads_prompt:
            kwargs.pop("prompt_mask", None)
        if not forward.enabled:
            adapter.blocks.active.get().check_generators()
        elif not adapter.merged:
            begin_forward(adapter, condition, task_ids, args, inputs)
        elif not (condition is None and task_ids is None):
            raise ValueError("the adapter is merged, so a forward takes no condition and no task_ids; unmerge it first")
        return args, kwargs

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave the forward: no condition outlives it."""
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
    host.enter_forward(None)
    try:
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
    if not _is_guarded(model):
        return
    guarded = model.forward
    assert isinstance(guarded, functools.partial)
    del model.forward
    if guarded.args[2] is not None:  # the argument `replaced` of `_guarded`
        model.forward = guarded.args[2]
