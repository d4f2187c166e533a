"""The settings of the demo, which the command line reads without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from metalora._util.number_range import SEED, Range
from metalora.config import Configuration


@dataclass(frozen=True)
class DemoConfig(Configuration):
    """How large the demo is."""

    data: str = "auto"
    """emoji (fetched from npm, 150 MB), mnist-5k, or auto: emoji if they can be fetched"""
    steps: Annotated[int, Range(least=0)] = 200
    """training steps with labels"""
    steps_without_labels: Annotated[int, Range(least=0)] = 100
    """training steps without labels; 0: this part is left out"""
    image_size: Annotated[int, Range(least=1)] = 48
    """side of the pictures in pixels"""
    examples: Annotated[int, Range(least=1)] = 60
    """labelled examples of the new task"""
    queries: Annotated[int, Range(least=1)] = 200
    """further pictures of the new task"""
    seed: Annotated[int, SEED] = 0
    """seed of everything"""
