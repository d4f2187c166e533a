"""What a state dict says of a merge: W + Delta W and W have one name, and must not be loaded for each other."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from metalora.adapters.adapter import Adapter

MARK = "merged"
"""The last part of the name of an entry that only the state dict of a merged model has, a tensor () of True."""


def guard_state(model: nn.Module, adapter: Adapter) -> list[RemovableHandle]:
    """Mark the state dicts of a model while its adapter is merged, and refuse to load those that do not fit.

    Args:
        model: The model.
        adapter: Its adapter.

    Returns:
        The handles of the hooks.
    """
    return [
        adapter.register_state_dict_post_hook(_mark),  # type: ignore[no-untyped-call]
        adapter.register_load_state_dict_pre_hook(_drop_mark),  # type: ignore[no-untyped-call]
        # Of the model, whose hook runs before any of its tensors is changed.
        model.register_load_state_dict_pre_hook(functools.partial(_check_mark, adapter)),  # type: ignore[no-untyped-call]
    ]


def is_mark(name: str) -> bool:
    """Return True if an entry of a state dict is the mark of a merged model.

    Example:
        >>> is_mark("0.adapter.merged"), is_mark("0.base.weight")
        (True, False)
    """
    return name.endswith(f"adapter.{MARK}")


def _mark(adapter: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    assert isinstance(adapter, Adapter)
    if adapter.merged:
        state[prefix + MARK] = torch.tensor(True)


def _drop_mark(adapter: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    state.pop(prefix + MARK, None)  # the adapter has no such tensor, and a strict load would refuse it


def _check_mark(adapter: Adapter, model: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    bases = tuple(f"{prefix}{path}.base." for path in adapter.layers)
    if not any(name.startswith(bases) for name in state):
        return  # the adapter alone
    is_merged = any(name.startswith(prefix) and is_mark(name) for name in state)
    if is_merged and not adapter.merged:
        raise ValueError(
            "load_state_dict: this is the state of a merged model, whose weights hold Delta W already; merge the "
            "adapter before you load it, or take the state of the unmerged model. Nothing was loaded"
        )
    if adapter.merged and not is_merged:
        raise ValueError(
            "load_state_dict: the adapter is merged, and this is the state of a model that is not; unmerge it first. "
            "Nothing was loaded"
        )
