"""Tensor-network adapters of pre-trained PyTorch models."""

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach, count_params, detach, merge, unmerge
from metalora.adapters.checkpointing import checkpoint, checkpointing
from metalora.adapters.conditioning import Condition
from metalora.adapters.targets import Target, find_targets
from metalora.config import AdapterConfig, ConditionConfig
from metalora.io.adapter_file import load, save
from metalora.methods.registry import methods

__version__ = "0.1.0"
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
    "save",
    "unmerge",
]
