"""Law 9: deepcopy and pickle give independent copies."""

import copy
import pickle

import pytest
import torch

import metalora
from metalora import (
    AdapterConfig,
    ConditionConfig,
    attach,
    detach,
)
from support.adapters import randomise
from support.cases import attach_case
from support.conv_net import BODY, SOURCES, conv_net, images
from support.laws import (
    EVERY_CASE,
)
from support.layers import LAYERS, apply

COPY = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("copied", COPY.values(), ids=COPY)
@EVERY_CASE
def test_9_copies_are_independent(case, copied):
    model, adapter, x, _ = attach_case(case, LAYERS["conv2d"])

    def run(model, adapter):
        return model(x, **({"condition": case.condition(adapter, len(x), 1)} if case.per_example else {}))

    other = copied(model)
    twin = metalora.adapter_of(other)
    first = run(model, adapter)
    assert twin is not adapter and torch.equal(run(other, twin), first)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    randomise(twin)
    assert torch.equal(run(model, adapter), first)
    second = run(other, twin)
    assert not torch.equal(second, first)
    randomise(adapter)
    assert torch.equal(run(other, twin), second)
    detach(other)
    assert torch.equal(other(x), apply(other[0], x, other[0].weight)) and metalora.adapter_of(model) is adapter
    assert not torch.equal(run(model, adapter), other(x))


@pytest.mark.parametrize("copied", COPY.values(), ids=COPY)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_9_the_hooks_of_a_copy_use_the_adapter_of_the_copy(source, copied):
    model, x = conv_net(), images()
    config = AdapterConfig(method="metalora-cp", rank=2, targets=BODY, condition=ConditionConfig(**source, hidden=5))
    adapter = attach(model, config, example=x)
    randomise(adapter)
    other = copied(model)
    twin = metalora.adapter_of(other)
    first = model(x)
    assert torch.equal(other(x), first)
    with torch.no_grad():
        twin.conditioner.mapping_net.head.bias.add_(1.0)
    assert torch.equal(model(x), first) and not torch.equal(other(x), first)
    assert twin.current().values is None and not twin.recorder.active and adapter.current().values is None
    detach(other)
    assert not other._forward_pre_hooks and not other._forward_hooks and model._forward_pre_hooks
