"""Laws of layers whose class has a forward of its own: what is live is f(x; W + Delta W), and so is what is merged."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from metalora import attach, merge, unmerge
from metalora.adapters.own_forward import Dependence, Trial, try_forward
from metalora.adapters.targets import kind_of
from support.adapters import assert_close, randomise
from support.cases import CASES
from support.own_forwards import GENERAL, OWN_FORWARDS, Router, closed

METHODS = ("lora", "metatt-4d", "dora", "loha", "lokr-full", "quanta")
PER_EXAMPLE = ("lora-A", "lora-B", "metalora-cp-c", "dora-d", "quanta-T13")
WITH_BIAS = {name: layer for name, layer in OWN_FORWARDS.items() if getattr(layer.make(), "bias", None) is not None}
EVERY_LAYER = pytest.mark.parametrize("layer", OWN_FORWARDS.values(), ids=OWN_FORWARDS)


def attached(case, layer):
    model = layer.base()
    adapter = attach(model, CASES[case].config(clip_rank=True))
    randomise(adapter)
    return model, adapter, layer.inputs()


def with_weight(base: nn.Module, weight: torch.Tensor) -> nn.Module:
    """A copy of a layer with another weight."""
    layer = copy.deepcopy(base)
    with torch.no_grad():
        if layer._parameters.get("weight") is None:  # a parametrization stores it
            layer.weight = weight
        else:
            layer.weight.copy_(weight)
    return layer


@EVERY_LAYER
def test_the_trial_finds_how_the_forward_depends_on_the_weight_and_changes_nothing(layer):
    base = layer.make().train()
    state, numbers = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    assert try_forward(base, kind_of(base)).dependence is layer.dependence
    assert base.training and torch.equal(numbers, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())


def test_the_trial_does_not_take_the_numbers_of_a_layer_for_its_rule():
    assert try_forward(closed(), "conv2d") == Trial(GENERAL)
    first, second = Gemma3TextScaledWordEmbedding(9, 6, 0, 1.0), Gemma3TextScaledWordEmbedding(9, 6, 0, 2.0)
    found = [try_forward(layer, "embedding").dependence for layer in (first, second, first)]
    assert found == [Dependence.SAME_UPDATE, Dependence.LINEAR, Dependence.SAME_UPDATE]


@pytest.mark.parametrize("case", METHODS)
@EVERY_LAYER
def test_live_and_merged_are_the_forward_with_the_adapted_weight(case, layer):
    model, adapter, x = attached(case, layer)
    base = model[0].base
    live, state = model(x), copy.deepcopy(base.state_dict())
    assert_close(live, with_weight(base, base.weight + adapter.delta("0"))(x))
    assert not torch.allclose(live, base(x))
    merge(model)
    assert_close(model(x), live)
    unmerge(model)
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    live.square().sum().backward()
    assert all(parameter.grad.any() for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())


@EVERY_LAYER
def test_scaled_outputs_are_merged_or_refused(layer):
    if layer.dependence is GENERAL:
        with pytest.raises(ValueError, match="does not scale with its weight, as ia3 needs it"):
            attached("ia3", layer)
        return
    model, adapter, x = attached("ia3", layer)
    live = model(x)
    assert not torch.allclose(live, model[0].base(x))
    merge(model)
    assert_close(model(x), live)


@pytest.mark.parametrize("case", ("lora", "dora"))
@pytest.mark.parametrize("layer", WITH_BIAS.values(), ids=WITH_BIAS)
def test_trained_biases_are_merged(case, layer):
    model, x = layer.base(), layer.inputs()
    adapter = attach(model, CASES[case].config(bias="adapted"))
    randomise(adapter)
    live, without = model(x), with_weight(model[0].base, model[0].base.weight + adapter.delta("0"))(x)
    assert not torch.allclose(live, without)
    merge(model)
    assert_close(model(x), live)


@pytest.mark.parametrize("case", PER_EXAMPLE)
@EVERY_LAYER
def test_a_mixed_batch_is_each_example_alone(case, layer):
    model, adapter, x = attached(case, layer)
    base, condition = model[0].base, CASES[case].condition(adapter, len(x))
    mixed = model(x, condition=condition)
    for number in range(len(x)):
        weight = base.weight + adapter.delta("0", condition[number])
        assert_close(mixed[number], with_weight(base, weight)(x[number : number + 1])[0])


@pytest.mark.parametrize("case", ("lora", "lora-A", "metalora-cp-c"))
@EVERY_LAYER
def test_no_examples_give_no_outputs_and_no_gradients(case, layer):
    model, adapter, x = attached(case, layer)
    options = {"condition": CASES[case].condition(adapter, 3)[torch.arange(0)]} if CASES[case].per_example else {}
    output = model(x[:0], **options)
    assert output.shape == model[0].base(x[:0]).shape
    output.sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in adapter.parameters())


@EVERY_LAYER
def test_a_compiled_forward_is_the_eager_one(layer):
    torch._dynamo.reset()
    model, adapter, x = attached("lora", layer)
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_a_layer_that_returns_several_tensors():
    torch.manual_seed(0)
    model, x = nn.Sequential(Router(6, 5)).double(), torch.randn(4, 6, dtype=torch.float64)
    adapter = attach(model, CASES["lora"].config())
    randomise(adapter, std=2.0)
    live = model(x)
    expected = with_weight(model[0].base, model[0].base.weight + adapter.delta("0"))(x)
    assert model[0].dependence is GENERAL and not torch.equal(live.indices, model[0].base(x).indices)
    assert_close(live.values, expected.values)
    assert torch.equal(live.indices, expected.indices)


def test_further_arguments_reach_a_base_with_a_bottleneck():
    layer = OWN_FORWARDS["positions"]
    model, ids, positions = layer.base(), layer.inputs(), torch.tensor([[3, 1, 0, 2]])
    attach(model, CASES["loretta-adp"].config())  # it starts as the base
    assert_close(model[0](ids, position_ids=positions), model[0].base(ids, position_ids=positions))


def test_further_arguments_reach_the_forward_of_the_class():
    layer = OWN_FORWARDS["positions"]
    model, adapter, ids = attached("lora", layer)
    base = model[0].base
    positions = torch.tensor([[3, 1, 0, 2]])
    expected = with_weight(base, base.weight + adapter.delta("0"))(ids, position_ids=positions)
    assert_close(model[0](ids, position_ids=positions), expected)
    adapter.dropout = 0.5
    assert_close(model[0](ids, position_ids=positions), expected)  # in eval mode
    adapter.train()
    with pytest.raises(ValueError, match="target '0': BartLearned.* leaves the adapter's dropout out"):
        model[0](ids, position_ids=positions)
    with adapter.disabled():
        assert torch.equal(model[0](ids, position_ids=positions), base(ids, position_ids=positions))
