"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Host(Protocol):
    """What prepares the adapters of a model for a forward, and clears up after it."""

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the condition and the task ids out of the arguments, and enter the forward."""
        ...

    def after_forward(self, output: Any) -> None:
        """Leave the forward; `output` is None if it raised."""
        ...


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


def unguard_forward(model: nn.Module, host: Host) -> None:
    """Give a model the forward back that it had; nothing if another wrapper stands there now."""
    guarded = vars(model).get("forward")
    if not isinstance(guarded, functools.partial) or guarded.func is not _guarded or guarded.args[1] is not host:
        return
    del model.forward
    if guarded.args[2] is not None:
        model.forward = guarded.args[2]
