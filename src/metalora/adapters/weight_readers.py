"""Which layers a model computes with by itself: modules whose forward takes the weight of another module.

Such as `F.linear(x, self.qkv.weight)`, and not `self.qkv.weight.dtype`. It is found in the source of the classes; code
whose source is missing, or that reaches a layer by another name, is met when it runs
(`metalora.adapters.layers.adapted_tensor`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, cast

from torch import nn

LOOKS = frozenset(
    {
        "dtype", "device", "shape", "ndim", "layout", "is_cuda", "is_cpu", "is_meta", "requires_grad", "size", "dim",
        "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_contiguous", "element_size", "get_device",
        "itemsize", "new_zeros", "new_ones", "new_empty", "new_full",
    }
)  # fmt: skip
"""Attributes and methods of a tensor that do not depend on its numbers."""
LOOKING_CALLS = frozenset({"isinstance", "hasattr", "getattr", "type", "id", "to", "type_as"})
"""Functions and methods that take a weight and do not depend on its numbers."""
TENSORS = frozenset({"weight", "bias", "forward", "_conv_forward", "_parameters", "_buffers", "_modules", "__call__"})
"""Names by which a method of a layer reaches its tensors."""


def computed_with(model: nn.Module) -> frozenset[str]:
    """Return the paths of the modules whose weight another module of the model computes with in its forward.

    Example:
        >>> sorted(computed_with(nn.Sequential(nn.MultiheadAttention(4, 2))))
        ['0.out_proj']
    """
    paths = set()
    for path, module in model.named_modules():
        for chain in _chains(cast(Any, type(module))):
            full = f"{path}.{chain}".lstrip(".")
            if _has_module(model, full):
                paths.add(full)
    return frozenset(paths)


def runs_without_tensors(module_class: type[nn.Module], method: str) -> bool:
    """Whether a method of a class, with what it calls, names no tensor and no forward: it computes with settings.

    Args:
        module_class: The class.
        method: Name of one of its methods.

    Example:
        >>> class Strided(nn.Conv1d):
        ...     def output_length(self, length):
        ...         return length // self.stride[0]
        >>> runs_without_tensors(Strided, "output_length"), runs_without_tensors(Strided, "reset_parameters")
        (True, False)
    """
    functions = list(_reached(module_class, method))
    return bool(functions) and not any(_names(function.__code__) & TENSORS for function in functions)


def _has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _chains(module_class: type[nn.Module]) -> tuple[str, ...]:
    """Return the attributes of a class ("attn.qkv") with whose weight its forward, or what that calls, computes."""
    if module_class.__module__.partition(".")[0] == "metalora":
        return ()
    chains: dict[str, None] = {}
    for function in _reached(module_class):
        if "weight" in _names(function.__code__):
            chains |= dict.fromkeys(_computed_chains(function))
    return tuple(chains)


def _reached(module_class: type[nn.Module], start: str = "forward") -> Iterator[FunctionType]:
    """Yield a method of a class and the methods that it names, directly or by others."""
    names, seen = [start], {start}
    while names:
        function = _function(module_class, names.pop())
        if function is None:
            continue
        yield function
        new = _names(function.__code__) - seen
        seen |= new
        names += sorted(new)


def _function(module_class: type[nn.Module], name: str) -> FunctionType | None:
    """Return a method of a class that is not one of every module, without its decorators; None if it has none."""
    value = inspect.getattr_static(module_class, name, None)
    if isinstance(value, property):
        value = value.fget
    value = inspect.unwrap(value) if callable(value) else value
    is_own = isinstance(value, FunctionType) and getattr(nn.Module, name, None) is not value
    return value if is_own and isinstance(value, FunctionType) else None


def _names(code: CodeType) -> set[str]:
    """Return the attributes and globals that a function names, those of functions inside of it too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _computed_chains(function: FunctionType) -> Iterator[str]:
    """Yield the attributes of `self` with whose weight a function computes."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return  # no source, as for code that was typed in
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    own_name = next(iter(function.__code__.co_varnames), "self")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
            chain = _chain(node.value, own_name)
            if chain and not _only_looks(node, parents):
                yield chain


def _chain(node: ast.expr, own_name: str) -> str:
    """Return "attn.qkv" for `self.attn.qkv`; nothing for `self` and for other expressions."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return ".".join(reversed(words)) if isinstance(node, ast.Name) and node.id == own_name else ""


def _only_looks(node: ast.Attribute, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression with a weight asks for its type, its device or its shape, or whether there is one."""
    parent = parents[node]
    if isinstance(parent, ast.Attribute):
        return parent.attr in LOOKS
    if isinstance(parent, ast.Compare):
        return all(isinstance(operator, (ast.Is, ast.IsNot)) for operator in parent.ops)
    if isinstance(parent, ast.Call) and node is not parent.func:
        called = parent.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name in LOOKING_CALLS
    return False
