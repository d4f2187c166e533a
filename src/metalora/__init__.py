"""Tensor-network adapters of pre-trained PyTorch models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metalora.config import AdapterConfig, ConditionConfig
from metalora.methods.registry import methods

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.attach import adapter_of, attach, count_params, detach
    from metalora.adapters.checkpointing import checkpoint, checkpointing
    from metalora.adapters.conditioning.condition import Condition
    from metalora.adapters.merge import merge, unmerge
    from metalora.adapters.new_task import new_task
    from metalora.adapters.targets import Target, find_targets
    from metalora.io.adapter_file import load, save
    from metalora.ranks.sweep import sweep

__version__ = "0.1.0"

# What needs torch is imported when it is first used, so that `metalora --help` need not wait for torch.
_HOMES = {
    "metalora.adapters.adapter": ("Adapter",),
    "metalora.adapters.attach": ("adapter_of", "attach", "count_params", "detach"),
    "metalora.adapters.merge": ("merge", "unmerge"),
    "metalora.adapters.checkpointing": ("checkpoint", "checkpointing"),
    "metalora.adapters.conditioning.condition": ("Condition",),
    "metalora.ranks.sweep": ("sweep",),
    "metalora.adapters.targets": ("Target", "find_targets"),
    "metalora.adapters.new_task": ("new_task",),
    "metalora.io.adapter_file": ("load", "save"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Condition",
    "ConditionConfig",
    "Target",
    "adapter_of",
    "attach",
    "checkpoint",
    "checkpointing",
    "count_params",
    "detach",
    "find_targets",
    "load",
    "merge",
    "methods",
    "new_task",
    "save",
    "sweep",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metalora' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
