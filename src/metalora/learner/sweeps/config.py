"""The settings of a search: its budget, and what it chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from metalora._util.number_range import SEED, Range
from metalora.config import Configuration

DESCRIPTION_FILE = "sweep.json"  # which tells the folder of a search


@dataclass(frozen=True)
class SweepConfig(Configuration):
    """What a search over method, rank, learning rate and targets tries, and for how long.

    The first trial always has the settings that the training would have without a search, whatever the choices are.

    Example:
        >>> SweepConfig(trials=30, ranks=(4, 8)).test_items
        0.2
    """

    trials: Annotated[int, Range(least=1)] = 20
    """number of trials in the folder, those of other processes and of earlier calls included"""
    minutes: Annotated[float | None, Range(above=0)] = None
    """no trial starts after this many minutes; the one that runs then is completed. none: no limit"""
    methods: tuple[str, ...] = ()
    """methods to choose from, for a fine-tuning also full and head; empty: those of lora, dora and metatt-4d that fit
    the network"""
    ranks: Annotated[tuple[int, ...], Range(least=1)] = (4, 8, 16, 32)
    """ranks to choose from"""
    rates: Annotated[tuple[float, ...], Range(above=0)] = ()
    """smallest and largest learning rate; empty: from an eighth of the usual rate of the method to eight times of it.
    The range is widened to the rate of the first trial"""
    targets: tuple[str, ...] = ()
    """targets to choose from, each a preset or patterns with commas; empty: those of all, linear, conv and
    query,value that fit the network and differ"""
    test_items: Annotated[float, Range(above=0, below=1)] = 0.2
    """share of the inputs that no trial sees: they judge the result"""
    prune: bool = True
    """stop a trial early whose validations are behind those of the others"""
    seed: Annotated[int, SEED] = 0
    """seed of the choices"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ranks:
            raise ValueError("SweepConfig.ranks is empty, expected one rank at least")
        if self.rates and (len(self.rates) != 2 or self.rates[0] > self.rates[1]):
            raise ValueError(f"SweepConfig.rates is {self.rates}, expected the smallest and the largest rate")
