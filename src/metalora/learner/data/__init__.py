"""The examples of a learner: tables, folders and lists become pools of inputs with label columns, and draws of them."""

from metalora.learner.data.episodes import Draw, EpisodeSettings, EpisodeSource, PoolEpisodes
from metalora.learner.data.labels import LabelColumn, encode_labels
from metalora.learner.data.notions import ProceduralNotions
from metalora.learner.data.pool import TaskPool
from metalora.learner.data.prepared import PreparedInputs
from metalora.learner.data.preprocessing import (
    ArrayPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
    preprocessor_from_dict,
    timm_preprocessor,
    torchvision_preprocessor,
)
from metalora.learner.data.reading import read_tasks

__all__ = [
    "ArrayPreprocessor",
    "Draw",
    "EpisodeSettings",
    "EpisodeSource",
    "ImagePreprocessor",
    "LabelColumn",
    "PoolEpisodes",
    "PreparedInputs",
    "Preprocessor",
    "ProceduralNotions",
    "TaskPool",
    "TextPreprocessor",
    "encode_labels",
    "preprocessor_from_dict",
    "read_tasks",
    "timm_preprocessor",
    "torchvision_preprocessor",
]
