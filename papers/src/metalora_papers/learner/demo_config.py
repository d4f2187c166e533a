"""The settings of the demo, which the command line reads without loading torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoConfig:
    """How large the demo is."""

    data: str = "auto"
    """emoji (fetched from npm, 150 MB), mnist-5k, or auto: emoji if they can be fetched"""
    steps: int = 200
    """training steps with labels"""
    steps_without_labels: int = 100
    """training steps without labels; 0: this part is left out"""
    image_size: int = 48
    """side of the pictures in pixels"""
    examples: int = 60
    """labelled examples of the new task"""
    queries: int = 200
    """further pictures of the new task"""
    seed: int = 0
    """seed of everything"""
