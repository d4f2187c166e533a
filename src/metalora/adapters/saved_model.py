"""`save_pretrained` of an adapted model: the folder is that of the base, with the adapter in a file of its own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from metalora.adapters.adapter import Adapter
from metalora.adapters.held_matrix import HeldMatrix
from metalora.adapters.merged_state import is_mark
from metalora.adapters.replaced_method import NAME_AND_DOC, replace_method, restore_method

ADAPTER_FILE = "metalora_adapter.safetensors"
"""Name of the adapter's file in the folder."""
NEUTRAL = "metalora_adapter."
"""What the adapter's names start with in the model's file, if they are not to say a path."""


def guard_saving(model: nn.Module, adapter: Adapter) -> list[RemovableHandle]:
    """Let `save_pretrained` write the names of the base, and let `load_state_dict` read them.

    An adapted layer holds its base as a part, so that a state dict has "q_proj.base.weight" where the base has
    "q_proj.weight". transformers would not find such a name again, and would draw new weights. With the adapter merged,
    the folder is a plain model with W + Delta W.

    Args:
        model: The model; its `save_pretrained` is replaced if it has one.
        adapter: Its adapter.

    Returns:
        The handles of the hooks.
    """
    if not callable(getattr(model, "save_pretrained", None)):
        return []
    replace_method(model, "save_pretrained", _save_pretrained, adapter, NAME_AND_DOC)
    hook = functools.partial(_take_names_of_base, adapter)
    return [model.register_load_state_dict_pre_hook(hook)]  # type: ignore[no-untyped-call]


def unguard_saving(model: nn.Module) -> None:
    """Give a model the `save_pretrained` back that it had; nothing if another wrapper stands there now."""
    restore_method(model, "save_pretrained", _save_pretrained)


def names_of_base(adapter: Adapter, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of an adapted model with the names that its base has; without the adapter if it is merged.

    Args:
        adapter: The adapter.
        state: The state dict.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> [*names_of_base(adapter, model.state_dict())]
        ['0.weight', '0.bias', '0.adapter.owned.0/A', '0.adapter.owned.0/B']
    """
    inside = {f"{path}.base.": f"{path}." for path in adapter.layers}
    own, neutral = _path_of(adapter), neutral_names(adapter)
    renamed = {}
    for name, value in state.items():
        if is_mark(name) or (adapter.merged and name.startswith(own)):
            continue
        prefix = next((prefix for prefix in inside if name.startswith(prefix)), "")
        renamed[neutral.get(name) or inside.get(prefix, "") + name.removeprefix(prefix)] = value
    return renamed


def _path_of(adapter: Adapter) -> str:
    """What the names of the adapter's entries start with in a state of the model."""
    return next(f"{path}." for path, module in adapter.model.named_modules() if module is adapter)


def neutral_names(adapter: Adapter) -> dict[str, str]:
    """Return the adapter's names in a state of the model -> names that say no path, if it adapts experts.

    transformers converts entries with "experts" in their names as if they were weights of the base: it cuts them up.

    Args:
        adapter: The adapter.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="in_proj_weight"))
        >>> [*neutral_names(adapter).values()]
        ['metalora_adapter.0', 'metalora_adapter.1']
    """
    if not any(isinstance(layer.base, HeldMatrix) for layer in adapter.layers.values()):
        return {}
    path = _path_of(adapter)
    return {f"{path}{name}": f"{NEUTRAL}{number}" for number, name in enumerate(adapter.state_dict())}


def _save_pretrained(
    model: nn.Module, adapter: Adapter, replaced: Any, save_directory: str | Path, *args: Any, **options: Any
) -> Any:
    """Run a model's `save_pretrained` with the names of its base, and write the adapter next to it."""
    state = options.pop("state_dict", None)
    options["state_dict"] = names_of_base(adapter, model.state_dict() if state is None else state)
    if replaced is None:
        result = type(model).save_pretrained(model, save_directory, *args, **options)  # type: ignore[attr-defined]
    else:
        result = replaced(save_directory, *args, **options)
    if not adapter.merged and options.get("is_main_process", True):
        adapter.save(Path(save_directory) / ADAPTER_FILE)
    return result


def _take_names_of_base(adapter: Adapter, model: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Rename the entries of a state dict that has the names of the base, before it is loaded."""
    for name, neutral in neutral_names(adapter).items():
        _rename(state, prefix + neutral, prefix + name)
    for path, layer in adapter.layers.items():
        for name, _ in layer.base.named_parameters():
            _rename(state, f"{prefix}{path}.{name}", f"{prefix}{path}.base.{name}")
        for name, _ in layer.base.named_buffers():
            _rename(state, f"{prefix}{path}.{name}", f"{prefix}{path}.base.{name}")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    if old in state and new not in state:
        state[new] = state.pop(old)
