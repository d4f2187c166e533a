"""The work to attach an adapter, counted in calls of functions: it grows with the number of targets, not faster."""

import cProfile
import pstats

import pytest
from peft import get_peft_model
from torch import nn

from metalora import AdapterConfig, attach
from metalora.peft import TensorNetworkConfig

QKV = ["query", "key", "value"]
METHODS = ["lora", "metatt-4d"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in QKV)

    def forward(self, x):
        return self.query(x) + self.key(x) + self.value(x)


def in_place(model, method):
    attach(model, AdapterConfig(method, 2, targets=QKV))


def in_peft(model, method):
    get_peft_model(model, TensorNetworkConfig(method=method, r=2, target_modules=QKV))


def calls_for_each_target(adapt, method, layers):
    # Nothing in this model says the size of a head, so that all modules nearby are asked.
    model = nn.Sequential(*(Attention() for _ in range(layers)))
    profile = cProfile.Profile()
    profile.runcall(adapt, model, method)
    return pstats.Stats(profile).total_calls / (layers * len(QKV))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapt, most", [(in_place, 2000), (in_peft, 3600)])
def test_calls_grow_with_the_number_of_targets(adapt, most, method):
    calls_for_each_target(adapt, method, 2)  # what is imported or parsed once
    few, many = (calls_for_each_target(adapt, method, layers) for layers in (6, 24))
    assert many <= few and many < most
