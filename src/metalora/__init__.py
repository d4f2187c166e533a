"""Tensor-network adapters of pre-trained PyTorch models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metalora._util.extras import name_missing_extras
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora.methods.registry import methods

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.attach import adapter_of, attach, count_params, detach
    from metalora.adapters.checkpointing import checkpoint, checkpointing
    from metalora.adapters.conditioning.condition import Condition
    from metalora.adapters.conditioning.condition_table import ConditionTable
    from metalora.adapters.merge import merge, unmerge
    from metalora.adapters.new_task import new_task
    from metalora.adapters.replica import replica
    from metalora.adapters.targets import Target, find_targets
    from metalora.checkup import check
    from metalora.cost import summarise as plan
    from metalora.fitting.data_start import start_from_data
    from metalora.fitting.quantised_start import quantise_and_attach
    from metalora.io.adapter_file import load, save
    from metalora.io.lora.combine import combine
    from metalora.io.lora.convert import convert as convert_loras
    from metalora.io.lora.import_ import load_lora
    from metalora.io.lora.snapshot import low_rank_updates
    from metalora.io.mixture import mixture
    from metalora.knn import knn_predict
    from metalora.ranks.sweep import SweepReport, sweep
    from metalora.training.loop import fit

__version__ = "0.1.0"

name_missing_extras()

# Parts that are reachable as `metalora.NAME` without an import of their own.
_PARTS = ("client", "learner", "peft")

# What needs torch is imported when it is first used, so that `metalora --help` need not wait for torch.
_HOMES = {  # public name -> its module, and its name there
    "Adapter": ("metalora.adapters.adapter", "Adapter"),
    "Condition": ("metalora.adapters.conditioning.condition", "Condition"),
    "ConditionTable": ("metalora.adapters.conditioning.condition_table", "ConditionTable"),
    "SweepReport": ("metalora.ranks.sweep", "SweepReport"),
    "Target": ("metalora.adapters.targets", "Target"),
    "adapter_of": ("metalora.adapters.attach", "adapter_of"),
    "attach": ("metalora.adapters.attach", "attach"),
    "check": ("metalora.checkup", "check"),
    "checkpoint": ("metalora.adapters.checkpointing", "checkpoint"),
    "checkpointing": ("metalora.adapters.checkpointing", "checkpointing"),
    "combine": ("metalora.io.lora.combine", "combine"),
    "convert_loras": ("metalora.io.lora.convert", "convert"),
    "count_params": ("metalora.adapters.attach", "count_params"),
    "detach": ("metalora.adapters.attach", "detach"),
    "find_targets": ("metalora.adapters.targets", "find_targets"),
    "fit": ("metalora.training.loop", "fit"),
    "knn_predict": ("metalora.knn", "knn_predict"),
    "load": ("metalora.io.adapter_file", "load"),
    "load_lora": ("metalora.io.lora.import_", "load_lora"),
    "low_rank_updates": ("metalora.io.lora.snapshot", "low_rank_updates"),
    "merge": ("metalora.adapters.merge", "merge"),
    "mixture": ("metalora.io.mixture", "mixture"),
    "new_task": ("metalora.adapters.new_task", "new_task"),
    "plan": ("metalora.cost", "summarise"),
    "quantise_and_attach": ("metalora.fitting.quantised_start", "quantise_and_attach"),
    "replica": ("metalora.adapters.replica", "replica"),
    "save": ("metalora.io.adapter_file", "save"),
    "start_from_data": ("metalora.fitting.data_start", "start_from_data"),
    "sweep": ("metalora.ranks.sweep", "sweep"),
    "unmerge": ("metalora.adapters.merge", "unmerge"),
}

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Condition",
    "ConditionConfig",
    "ConditionTable",
    "SweepReport",
    "Target",
    "TrainConfig",
    "adapter_of",
    "attach",
    "check",
    "checkpoint",
    "checkpointing",
    "combine",
    "convert_loras",
    "count_params",
    "detach",
    "find_targets",
    "fit",
    "knn_predict",
    "load",
    "load_lora",
    "low_rank_updates",
    "merge",
    "methods",
    "mixture",
    "new_task",
    "plan",
    "quantise_and_attach",
    "replica",
    "save",
    "start_from_data",
    "sweep",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"metalora.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'metalora' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
