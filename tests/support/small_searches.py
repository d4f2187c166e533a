"""A small network, its table, and searches over it that take a second."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from metalora import AdapterConfig
from metalora.learner import FineTuneConfig, SweepConfig, sweep_finetune
from metalora.learner.backbone import load_backbone
from metalora.learner.sweeps.jobs import FineTuneJob

STEPS = FineTuneConfig(steps=6, validate_every=2)
ADAPTER = AdapterConfig("lora", rank=4, targets="0,2")
SEARCH = SweepConfig(trials=5, methods=("lora", "head"), ranks=(1, 2), targets=("0", "0,2"), seed=1)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))


def inputs_and_labels():
    inputs = np.random.default_rng(0).normal(size=(80, 6)).astype("float32")
    return inputs, np.where(inputs[:, 0] * inputs[:, 1] > 0, "ripe", "green").tolist()


def small_search(folder: Path, sweep=SEARCH, config=STEPS, adapter=ADAPTER, **options):
    """The result of a search of fine-tunings."""
    return sweep_finetune(
        folder, small_network(), *inputs_and_labels(), sweep, adapter=adapter, config=config, **options
    )


def small_job(config=STEPS, adapter=ADAPTER) -> FineTuneJob:
    """What the trials of `small_search` do."""
    return FineTuneJob(load_backbone(small_network()), *inputs_and_labels(), None, adapter, config, 0.2, None)
