"""A model that is as it was if something goes wrong in the middle, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_error(*models: nn.Module | None) -> Iterator[None]:
    """Give models back the parts, hooks and attributes that they had if the block does not end by itself.

    It covers what attaching and loading change: the modules and their hooks, plain attributes, and which parameters
    require a gradient. It does not cover numbers that are written into a parameter or a buffer in place.

    Args:
        models: The models; None is left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> with unchanged_on_error(model):
        ...     model.append(nn.ReLU())
        ...     raise ValueError("a file is damaged")
        Traceback (most recent call last):
        ValueError: a file is damaged
        >>> len(model)
        1
    """
    modules = [module for model in models if model is not None for module in model.modules()]
    before = {module: {name: (value, _content(value)) for name, value in vars(module).items()} for module in modules}
    gradients = {
        parameter: parameter.requires_grad for module in modules for parameter in module.parameters(recurse=False)
    }
    try:
        yield
    except BaseException:  # also Ctrl-C
        for module, attributes in before.items():
            _restore(module, attributes)
        for parameter, required in gradients.items():
            parameter.requires_grad_(required)
        raise


def _content(value: Any) -> Any:
    """Return a copy of a container, whose owner may change it in place; None for anything else."""
    return value.copy() if isinstance(value, dict | list | set) else None


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    current = vars(module)
    for name in current.keys() - attributes.keys():
        del current[name]
    for name, (value, content) in attributes.items():
        if content is not None:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        current[name] = value
