"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from metalora.adapters.conditioning.active import values_of_forward

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Condition


class Host(Protocol):
    """What prepares the adapters of a model for a forward, and clears up after it."""

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the condition and the task ids out of the arguments, and enter the forward."""
        ...

    def after_forward(self, output: Any) -> None:
        """Leave the forward; `output` is None if it raised."""
        ...


def begin_forward(
    adapter: Adapter, condition: Condition | None, task_ids: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Make an adapter ready for a forward of the model with these inputs: cut the stacks, choose the condition."""
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

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take `condition=` and `task_ids=` out of the arguments, and enter the forward."""
        adapter = self.adapter
        for norm in self.frozen_norms:
            norm.training = False
        condition = kwargs.pop("condition", None)
        task_ids = kwargs.pop("task_ids", None) if adapter.task_keys else None
        if adapter.state.enabled and not adapter.merged:
            begin_forward(adapter, condition, task_ids, args, kwargs)
        elif adapter.merged and not (condition is None and task_ids is None):
            raise ValueError("the adapter is merged, so a forward takes no condition and no task_ids; unmerge it first")
        return args, kwargs

    def after_forward(self, output: Any) -> None:
        """Leave the forward: no condition outlives it."""
        if self.adapter.state.enabled:
            end_forward(self.adapter, output)


def _guarded(model: nn.Module, host: Host, replaced: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Run a model's forward between a host's `before_forward` and `after_forward`."""
    output = None
    try:
        args, kwargs = host.before_forward(args, kwargs)
        if replaced is None:
            output = type(model).forward(model, *args, **kwargs)
        else:
            output = replaced(*args, **kwargs)
        return output
    finally:
        host.after_forward(output)


def guard_forward(model: nn.Module, host: Host) -> None:
    """Let a host run around every forward of a model.

    The guarded forward stands in `model.forward`. Unlike a pair of hooks it leaves nothing behind after any exception,
    also after KeyboardInterrupt and GeneratorExit, for which torch runs no forward hooks. It is a `functools.partial`
    with the signature of the model's own forward, so that copies, pickles, torch.export and trainers take it.
    """
    replaced = vars(model).get("forward")
    guarded = functools.partial(_guarded, model, host, replaced)
    functools.update_wrapper(guarded, model.forward)
    model.forward = guarded


def unguard_forward(model: nn.Module) -> None:
    """Give a model the forward back that it had; nothing if another wrapper stands there now."""
    guarded = vars(model).get("forward")
    if not isinstance(guarded, functools.partial) or guarded.func is not _guarded:
        return
    del model.forward
    if guarded.args[2] is not None:
        model.forward = guarded.args[2]
