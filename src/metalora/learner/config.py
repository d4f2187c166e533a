"""The settings of a learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from metalora._util.number_range import PROBABILITY, SEED, Range
from metalora.config import AdapterConfig, Configuration


@dataclass(frozen=True)
class LearnerConfig(Configuration):
    """How a learner is trained and how it adapts.

    Example:
        >>> LearnerConfig(steps=200, readout="lda").support
        60
    """

    adapter: AdapterConfig | None = field(default_factory=lambda: AdapterConfig("lora", rank=8, targets="all"))
    """the adapter that is trained; none: the frozen network with a readout, which needs no training"""
    readout: str = "kernel-ridge"
    """what a support set generates: kernel-ridge, lda, logistic, prototype or knn"""
    readout_settings: Annotated[dict[str, int], Range(least=0)] = field(default_factory=dict)
    """settings of the readout by name: balanced (1: all classes are equally likely), and for kernel-ridge folds (such
    as 10: calibrate on complete fits without a fold, which takes longer)"""
    steps: Annotated[int, Range(least=0)] = 500
    """number of training steps; each is `accumulate` forward and backward passes of `support` + `query` inputs; 0:
    nothing is trained, and a readout works on the frozen network"""
    lr: Annotated[float, Range(above=0)] = 5e-3
    """peak learning rate"""
    support: Annotated[int, Range(least=2)] = 60
    """labelled inputs of a training episode"""
    query: Annotated[int, Range(least=1)] = 48
    """further inputs of a training episode, which judge the readout"""
    accumulate: Annotated[int, Range(least=1)] = 1
    """number of episodes in each process whose mean gradient makes one training step"""
    label_sets: Annotated[int, Range(least=1)] = 6
    """number of tasks that share the forward pass of a step"""
    generator: str = "mapping-net"
    """for an adapter with condition.scope=support, what makes its core from a support set: mapping-net, gradient-step
    (CAVIA) or component"""
    static_steps: Annotated[int, Range(least=0)] = 0
    """number of first steps in which such an adapter is trained without a condition, with its core c0"""
    forwards: Annotated[int, Range(least=1)] = 1
    """label sets of a step that such an adapter is trained on, each with a forward pass of its own"""
    hidden_statistics: bool = True
    """also read the hidden activations x Left of the adapter: without them, an adapter of EfficientNet-Lite0 was 13
    points less accurate on the trained notions of emoji"""
    procedural: Annotated[float, PROBABILITY] = 0.5
    """probability that a task of a step is a procedural notion, which needs no label; 1 if there are no labels"""
    class_episodes: Annotated[float, PROBABILITY] = 0.2
    """probability that a step draws a few classes of a column with many classes"""
    warm_start: bool = False
    """continue from the state of the last fit, instead of training anew"""
    holdout_items: Annotated[float, Range(least=0, below=1)] = 0.2
    """share of the inputs that are not trained on, but kept for the validation and for the report"""
    validate_every: Annotated[int, Range(least=0)] = 100
    """number of steps between two validations; another one follows the last step, and the best state is kept; 0: no
    validation"""
    patience: Annotated[int, Range(least=0)] = 0
    """number of validations without an improvement after which the training stops; 0: never"""
    stages: tuple[str, ...] = ()
    """module paths whose outputs are read; empty: chosen by the architecture of the backbone"""
    image_size: Annotated[int | None, Range(least=1)] = None
    """side of the pictures in pixels; none: as the backbone was trained"""
    max_length: Annotated[int | None, Range(least=1)] = None
    """longest text in tokens; none: 128"""
    batch_size: Annotated[int, Range(least=1)] = 64
    """inputs of one forward pass outside of the training"""
    seed: Annotated[int, SEED] = 0
    """seed of the adapter and of all episodes"""
