"""The settings of a fine-tuning to one task."""

from __future__ import annotations

from dataclasses import dataclass

DESCRIPTION_FILE = "finetuned.json"  # which tells the folder of a fine-tuned network


@dataclass(frozen=True)
class FineTuneConfig:
    """How a network is fine-tuned to one task.

    Example:
        >>> FineTuneConfig(steps=200).holdout_items
        0.2
    """

    steps: int = 300
    """number of training steps"""
    lr: float | None = None
    """peak learning rate; none: 2e-3 for an adapter or a head, 5e-5 for the whole network"""
    batch_size: int = 32
    """inputs of a training step, and of a forward pass outside of the training"""
    holdout_items: float = 0.2
    """share of the inputs of each class that are not trained on: they choose the best step and give the scores"""
    validate_every: int = 25
    """number of steps between two validations; the best state is kept"""
    image_size: int | None = None
    """side of the pictures in pixels; none: as the backbone was trained"""
    max_length: int | None = None
    """longest text in tokens; none: 128"""

    def __post_init__(self) -> None:
        smallest = {"steps": 0, "batch_size": 1, "validate_every": 1}
        for name, limit in smallest.items():
            if getattr(self, name) < limit:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {limit}")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
