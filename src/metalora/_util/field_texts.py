"""The text below each field of a configuration, which its docstring shows as well, so that `help` has it."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from typing import Any


def add_fields_to_docstring(cls: type) -> None:
    """Let the docstring of a class end with the texts below its fields; they are read when somebody asks for it.

    Args:
        cls: The class, as it is being made.
    """
    described: Any = cls
    described.__doc__ = _DocstringWithFields(cls.__doc__ or "")


class _DocstringWithFields:
    """A docstring that is put together when it is read: importing a configuration does not wait for it."""

    def __init__(self, own: str):
        self.own = own

    def __get__(self, instance: object, owner: type) -> str:
        module = sys.modules.get(owner.__module__)
        if getattr(module, owner.__name__, None) is not owner:  # its decorator is still at work
            return self.own
        texts = texts_of_fields(owner)
        lines = [f"{name}: {text}" for name, text in texts.items()]
        if not texts:
            return self.own
        return "\n".join((self.own.rstrip(), "", "    Attributes:", *map(_indented, lines), "    "))


def _indented(line: str) -> str:
    """Return an entry of a docstring of Google's style, in lines."""
    return textwrap.fill(
        line, 110, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
    )


@functools.cache
def texts_of_fields(cls: type) -> dict[str, str]:
    """Return field -> the text below it, in the order of the class; empty if its source is not at hand.

    Args:
        cls: A class, of which single fields have a string below them.

    Example:
        >>> from metalora.config import TrainConfig
        >>> texts_of_fields(TrainConfig)["steps"]
        'number of optimiser steps'
    """
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # an interpreter without the files
        return {}
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
            texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]
    return texts


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is nothing but a string."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
