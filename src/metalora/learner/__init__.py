"""Own tasks: meta-train on pictures, texts or arrays, adapt to a new task from labelled examples, predict."""

from metalora.learner.backbone import Backbone, load_backbone
from metalora.learner.config import LearnerConfig
from metalora.learner.data import ArrayPreprocessor, ImagePreprocessor, TaskPool, TextPreprocessor, read_tasks
from metalora.learner.learner import MetaLearner
from metalora.learner.report import Report
from metalora.learner.task import AdaptedTask

__all__ = [
    "AdaptedTask",
    "ArrayPreprocessor",
    "Backbone",
    "ImagePreprocessor",
    "LearnerConfig",
    "MetaLearner",
    "Report",
    "TaskPool",
    "TextPreprocessor",
    "load_backbone",
    "read_tasks",
]
