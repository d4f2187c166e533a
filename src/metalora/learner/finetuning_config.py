"""The settings of a fine-tuning to one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from metalora._util.number_range import Range
from metalora.config import Configuration

DESCRIPTION_FILE = "finetuned.json"  # which tells the folder of a fine-tuned network


@dataclass(frozen=True)
class FineTuneConfig(Configuration):
    """How a network is fine-tuned to one task.

    Example:
        >>> FineTuneConfig(steps=200).holdout_items
        0.2
    """

    steps: Annotated[int, Range(least=0)] = 300
    """number of training steps; 0: nothing is trained but the head that it starts with, a logistic regression"""
    lr: Annotated[float | None, Range(above=0)] = None
    """peak learning rate; none: 2e-3 for an adapter or a head, 5e-5 for the whole network"""
    batch_size: Annotated[int, Range(least=1)] = 32
    """inputs of a batch of the training, and of a forward pass outside of the training"""
    accumulate: Annotated[int, Range(least=1)] = 1
    """number of batches in each process whose mean gradient makes one training step"""
    holdout_items: Annotated[float, Range(above=0, below=1)] = 0.2
    """share of the inputs of each class that are not trained on: they choose the best step and give the scores"""
    validate_every: Annotated[int, Range(least=1)] = 25
    """number of steps between two validations; the best state is kept"""
    features: Literal["last", "stages"] = "last"
    """what the head reads: the pooled last layer, or the mean and deviation of every channel at all stages"""
    image_size: Annotated[int | None, Range(least=1)] = None
    """side of the pictures in pixels; none: as the backbone was trained"""
    max_length: Annotated[int | None, Range(least=1)] = None
    """longest text in tokens; none: 128"""
