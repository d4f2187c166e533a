"""The halves of a refinement: every class is in the half that makes the readout."""

import numpy as np
import pytest
import torch
from torch import nn

from metalora.config import AdapterConfig
from metalora.learner import MetaLearner
from metalora.learner.readouts import Targets
from metalora.learner.refinement import halves


def test_every_class_is_divided():
    codes = torch.tensor([0] * 7 + [1] * 2 + [2])
    for seed in range(20):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        first, second = halves(order, Targets.classes(codes, 3))
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
        assert codes[first].bincount(minlength=3).tolist() == [4, 1, 1]


def test_numbers_are_divided_by_the_order_alone():
    order = torch.tensor([3, 1, 0, 2, 4])
    first, second = halves(order, Targets("numbers", torch.zeros(5, 1), 1))
    assert (first.tolist(), second.tolist()) == ([3, 1], [0, 2, 4])


@pytest.fixture
def learner():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    return MetaLearner(network, adapter=AdapterConfig("lora", 2, targets=("0", "2")), steps=0)


def test_many_small_classes_are_refined(learner):
    """A random half of three examples each of ten classes nearly always lacks a class: its loss was not a number."""
    inputs = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    task = learner.adapt(inputs, list(range(10)) * 3)
    refined = task.refine(inputs, list(range(10)) * 3, steps=5, lr=1e-3)
    assert all(factor.isfinite().all() for factor in refined.factors.values())
    assert any(not torch.equal(refined.factors[key], learner.adapter.learned[key]) for key in refined.factors)
