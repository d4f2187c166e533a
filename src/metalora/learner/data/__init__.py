"""The examples of a learner: tables, folders and lists become pools of inputs with label columns, and draws of them."""

from metalora.learner.data.array_preprocessing import ArrayPreprocessor
from metalora.learner.data.episode_settings import EpisodeSettings
from metalora.learner.data.episodes import Draw, EpisodeSource, PoolEpisodes
from metalora.learner.data.image_preprocessing import (
    ImagePreprocessor,
    timm_preprocessor,
    torchvision_preprocessor,
)
from metalora.learner.data.labels import LabelColumn, encode_labels
from metalora.learner.data.notions import ProceduralNotions
from metalora.learner.data.pool import TaskPool
from metalora.learner.data.prepared import PreparedInputs
from metalora.learner.data.preprocessing import Preprocessor, preprocessor_from_dict
from metalora.learner.data.reading import read_tasks
from metalora.learner.data.text_preprocessing import TextPreprocessor

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
