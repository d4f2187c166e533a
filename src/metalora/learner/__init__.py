"""Own tasks: meta-train on pictures, texts or arrays, adapt to a new task from labelled examples, predict."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metalora.learner.config import LearnerConfig
from metalora.learner.finetuning_config import FineTuneConfig
from metalora.learner.sweeps.config import SweepConfig

if TYPE_CHECKING:
    from metalora.learner.backbone import Backbone, load_backbone
    from metalora.learner.data import ArrayPreprocessor, ImagePreprocessor, TaskPool, TextPreprocessor, read_tasks
    from metalora.learner.finetuning import FineTuned, finetune
    from metalora.learner.learner import MetaLearner
    from metalora.learner.report import Report
    from metalora.learner.sweeps.result import SweepResult
    from metalora.learner.sweeps.sweep import sweep_finetune, sweep_fit
    from metalora.learner.task import AdaptedTask

# What needs torch is imported when it is first used, so that `metalora --help` need not wait for torch.
_HOMES = {  # public name -> its module
    "AdaptedTask": "metalora.learner.task",
    "ArrayPreprocessor": "metalora.learner.data",
    "Backbone": "metalora.learner.backbone",
    "FineTuned": "metalora.learner.finetuning",
    "ImagePreprocessor": "metalora.learner.data",
    "MetaLearner": "metalora.learner.learner",
    "Report": "metalora.learner.report",
    "SweepResult": "metalora.learner.sweeps.result",
    "TaskPool": "metalora.learner.data",
    "TextPreprocessor": "metalora.learner.data",
    "finetune": "metalora.learner.finetuning",
    "load_backbone": "metalora.learner.backbone",
    "read_tasks": "metalora.learner.data",
    "sweep_finetune": "metalora.learner.sweeps.sweep",
    "sweep_fit": "metalora.learner.sweeps.sweep",
}

__all__ = [
    "AdaptedTask",
    "ArrayPreprocessor",
    "Backbone",
    "FineTuneConfig",
    "FineTuned",
    "ImagePreprocessor",
    "LearnerConfig",
    "MetaLearner",
    "Report",
    "SweepConfig",
    "SweepResult",
    "TaskPool",
    "TextPreprocessor",
    "finetune",
    "load_backbone",
    "read_tasks",
    "sweep_finetune",
    "sweep_fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metalora.learner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
