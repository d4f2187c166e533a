"""A function in the place of a method of one model, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

NAME_AND_DOC = ("__name__", "__doc__")
"""What a function takes over of a method whose annotations do not pickle."""


def replace_method(
    model: nn.Module,
    name: str,
    function: Callable[..., Any],
    owner: object,
    taken_over: Sequence[str] = functools.WRAPPER_ASSIGNMENTS,
) -> None:
    """Let a model call a function in the place of one of its methods.

    The function gets the model, the owner, what stood on the instance before (None: the method of the class runs) and
    the arguments of the call. It is a partial of a function at module level, since a closure could not be pickled.

    Args:
        model: The model.
        name: Name of the method.
        function: A function at module level.
        owner: What the function works for, its second argument.
        taken_over: Attributes of the method that the function shows too.

    Example:
        >>> def twice(model, owner, replaced, x):
        ...     return 2 * x
        >>> model = nn.Identity()
        >>> replace_method(model, "forward", twice, owner=None)
        >>> model(3)
        6
        >>> restore_method(model, "forward", twice)
        >>> model(3)
        3
    """
    guarded = functools.partial(function, model, owner, vars(model).get(name))
    functools.update_wrapper(guarded, getattr(model, name), taken_over)
    setattr(model, name, guarded)


def is_replaced(model: nn.Module, name: str, function: Callable[..., Any]) -> bool:
    """Return True if `replace_method` has put this function there, and no wrapper stands around it.

    Example:
        >>> is_replaced(nn.Identity(), "forward", print)
        False
    """
    guarded = vars(model).get(name)
    return isinstance(guarded, functools.partial) and guarded.func is function


def own_method(model: nn.Module, name: str, replaced: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return the method that a function stands in the place of: the one that was on the instance, or that of the class.

    Args:
        model: The model.
        name: Name of the method.
        replaced: What stood on the instance before, the third argument of the function; None: nothing did.

    Example:
        >>> own_method(nn.Identity(), "forward", None)(3)
        3
    """
    if replaced is not None:
        return replaced
    method: Callable[..., Any] = getattr(type(model), name).__get__(model)
    return method


def restore_method(model: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Give a model the method back that it had; do nothing if another wrapper stands there now.

    Args:
        model: The model.
        name: Name of the method.
        function: The function that `replace_method` has put there.
    """
    if not is_replaced(model, name, function):
        return
    before = vars(model)[name].args[2]  # the third argument of the function
    delattr(model, name)
    if before is not None:
        setattr(model, name, before)
