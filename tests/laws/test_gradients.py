"""Law 5: every learned number gets a gradient within a few steps, and no number of the base ever does."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, detach
from metalora.methods.registry import METHODS
from support.cases import attach_case
from support.laws import EVERY_CELL


def reached_by_step(model, optimiser, x, target, condition):
    """One step; the parameters that got a gradient that is not zero."""
    optimiser.zero_grad()
    (model(x, **condition()) - target).square().sum().backward()
    optimiser.step()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("optimiser", (torch.optim.SGD, torch.optim.Adam), ids=("sgd", "adam"))
@EVERY_CELL
def test_5_gradients_reach_every_learned_number_and_no_base_parameter(case, layer, optimiser):
    model, adapter, x, condition = attach_case(case, layer, "many", random=False)
    base = {n: p.clone() for n, p in model[0].base.named_parameters()}
    make = (lambda: {"condition": case.condition(adapter, len(x), 1)}) if case.per_example else dict
    target = torch.randn_like(model(x, **make()))
    optimiser = optimiser(adapter.parameters(), lr=1e-3)
    reached = reached_by_step(model, optimiser, x, target, make)
    assert any(".owned." in name for name in reached)
    for _ in range(2):
        reached |= reached_by_step(model, optimiser, x, target, make)
    assert reached == {n for n, _ in model.named_parameters() if ".adapter." in n}
    assert {id(p) for n, p in model.named_parameters() if n in reached} == {id(p) for p in adapter.parameters()}
    for name, parameter in model[0].base.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, base[name])


@pytest.mark.parametrize("method", METHODS)
def test_5_batch_norm_of_a_training_model_keeps_its_very_bits(method):
    blocks = (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2))
    model = nn.Sequential(nn.Sequential(*blocks), nn.Flatten(), nn.Linear(36, 3))
    model.double()[0][0][1].running_mean.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    condition = ConditionConfig(stages=("0.0",))
    example = torch.randn(4, 4, 7, 7, dtype=torch.float64)
    options = dict(rank=2, experts=2, targets="conv", head_dim=2, condition=condition)
    adapter = attach(model, AdapterConfig(method=method, **options), example=example)
    model.train()
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(3):
        reached_by_step(model, optimiser, example, 1.0, dict)
    assert all(p.grad is None for n, p in model.named_parameters() if ".adapter." not in n)
    detach(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and after.keys() == before.keys()


def test_5_instance_norm_of_a_training_model_keeps_its_very_bits():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    attach(model, AdapterConfig(rank=2, targets="conv"))
    before = model[1].running_mean.clone()
    model.train()(torch.randn(2, 3, 6, 6))
    assert torch.equal(model[1].running_mean, before)
