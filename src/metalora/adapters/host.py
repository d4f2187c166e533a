"""What runs around a forward of an adapted model: one small interface for `attach` and for the PEFT bridge."""

from __future__ import annotations

import inspect
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


class GuardedForward:
    """The forward of a model between a host's `before_forward` and `after_forward`.

    It stands in `model.forward`. Unlike a pair of hooks it leaves nothing behind after any exception, also after
    KeyboardInterrupt and GeneratorExit, for which torch runs no forward hooks.

    Args:
        model: The model whose forward runs.
        host: What is called before and after.
    """

    def __init__(self, model: nn.Module, host: Host):
        self._model = model
        self._host = host
        self._replaced: Callable[..., Any] | None = vars(model).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = None
        try:
            args, kwargs = self._host.before_forward(args, kwargs)
            if self._replaced is None:
                output = type(self._model).forward(self._model, *args, **kwargs)
            else:
                output = self._replaced(*args, **kwargs)
            return output
        finally:
            self._host.after_forward(output)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the model's own forward, which trainers read."""
        own = self._replaced or type(self._model).forward.__get__(self._model)
        return inspect.signature(own)

    def remove(self) -> None:
        """Give the model back the forward that it had; nothing if another wrapper stands there now."""
        if vars(self._model).get("forward") is not self:
            return
        del self._model.forward
        if self._replaced is not None:
            self._model.forward = self._replaced


def guard_forward(model: nn.Module, host: Host) -> GuardedForward:
    """Let a host run around every forward of a model; `remove` of what is returned ends it."""
    guarded = GuardedForward(model, host)
    model.forward = guarded
    return guarded
