"""What a wrong row, a wrong condition or an early rounding would change, on layers that are small enough to calculate.

The expected values are made from the base's weights and dense Delta W, without the bridge's forward.
"""

import copy

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import metalora.peft as mp
from metalora import Condition
from metalora.adapters.conditioning.generation import sequences_per_example

CONDITION_WIDTH = 3


def base_model(dtype=torch.float64):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def randomise(model, standard_deviation=0.5):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "metalora_" in name:
                parameter.normal_(0, standard_deviation)


def static_config(**more):
    return mp.TensorNetworkConfig(method="lora", r=2, target_modules=["0", "2"], **more)


def generated_config():
    condition = {"source": "tensor", "feature_size": CONDITION_WIDTH, "hidden": 4}
    return mp.MetaLoRAConfig(r=2, target_modules=["0", "2"], condition=condition)


def expected_output(base, x, deltas):
    """The base with W + Delta W, for one example `(5,)`."""
    hidden = torch.tanh(x @ (base[0].weight + deltas["0"]).mT + base[0].bias)
    return hidden @ (base[2].weight + deltas["2"]).mT + base[2].bias


def deltas_of(adapter, condition=None):
    return {path: adapter.delta(path, condition) for path in adapter.targets}


def zero_deltas(base):
    return {path: torch.zeros_like(base.get_submodule(path).weight) for path in ("0", "2")}


def test_every_row_of_a_mixed_batch_has_the_adapter_that_is_named_for_it():
    base = base_model()
    model = get_peft_model(copy.deepcopy(base), static_config(), adapter_name="first")
    model.add_adapter("second", static_config())
    randomise(model)
    model.eval()
    names = ["second", "__base__", "first", "second", "first"]
    deltas = {name: deltas_of(mp.adapter_of(model, name)) for name in ("first", "second")}
    deltas["__base__"] = zero_deltas(base)
    x = torch.randn(5, 5, dtype=torch.float64)
    output = model(x, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(output[row], expected_output(base, x[row], deltas[name]), rtol=0, atol=1e-10)


def test_every_row_has_the_condition_of_its_own_adapter_and_of_its_own_example():
    """Two adapters of one method: their conditions have the same factors and the same shapes."""
    base = base_model()
    model = get_peft_model(copy.deepcopy(base), generated_config(), adapter_name="first")
    model.add_adapter("second", generated_config())
    randomise(model)
    model = mp.wrap(model).eval()
    features = {name: torch.randn(4, CONDITION_WIDTH) for name in ("first", "second")}
    conditions = {name: mp.adapter_of(model, name).condition(features[name]) for name in features}
    names = ["second", "first", "first", "second"]
    x = torch.randn(4, 5, dtype=torch.float64)
    output = model(x, adapter_names=names, condition=conditions)
    for row, name in enumerate(names):
        deltas = deltas_of(mp.adapter_of(model, name), conditions[name][row])
        torch.testing.assert_close(output[row], expected_output(base, x[row], deltas), rtol=0, atol=1e-10)


def test_the_rows_of_a_beam_follow_their_example():
    """`generate` runs several rows per example, next to each other, under the condition of the example."""
    base = base_model()
    model = get_peft_model(copy.deepcopy(base), generated_config(), adapter_name="first")
    model.add_adapter("second", generated_config())
    randomise(model)
    model.eval()
    names, beams = ["second", "first"], 3
    conditions = {
        name: mp.adapter_of(model, name).condition(torch.randn(2, CONDITION_WIDTH)) for name in ("first", "second")
    }
    x = torch.randn(2 * beams, 5, dtype=torch.float64)
    arguments = dict(adapter_names=names, condition=conditions, num_beams=beams)
    with model.base_model._enable_peft_forward_hooks(**arguments):
        output = model.base_model(x)
    for row in range(2 * beams):
        example = row // beams
        deltas = deltas_of(mp.adapter_of(model, names[example]), conditions[names[example]][example])
        torch.testing.assert_close(output[row], expected_output(base, x[row], deltas), rtol=0, atol=1e-10)


def test_the_rows_of_a_beam_follow_their_example_under_one_adapter():
    """Without `adapter_names` the adapter itself repeats the conditions, for the beams that the container tells it."""
    base = base_model()
    model = get_peft_model(copy.deepcopy(base), generated_config())
    randomise(model)
    model.eval()
    adapter, beams = mp.adapter_of(model), 3
    condition = adapter.condition(torch.randn(2, CONDITION_WIDTH))
    x = torch.randn(2 * beams, 5, dtype=torch.float64)
    with model.base_model._enable_peft_forward_hooks(condition=condition, num_beams=beams):
        output = model.base_model(x)
    for row in range(2 * beams):
        deltas = deltas_of(adapter, condition[row // beams])
        torch.testing.assert_close(output[row], expected_output(base, x[row], deltas), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="the condition is for 2 examples, the layer got 6"):
        with model.base_model._enable_peft_forward_hooks(condition=condition):
            model.base_model(x)


def test_the_beams_are_the_largest_number_that_generate_is_asked_for():
    class Generation:
        num_beams = 4
        num_return_sequences = None

    assert sequences_per_example(None, {}) == 1
    assert sequences_per_example(None, {"num_beams": 2, "num_return_sequences": 3}) == 3
    assert sequences_per_example(None, {"generation_config": Generation()}) == 4
    assert sequences_per_example(None, {"generation_config": Generation(), "num_beams": 2}) == 2


@pytest.mark.parametrize("names", [["first"], ["second", "first"]], ids=["one", "two"])
def test_merging_in_16_bits_rounds_each_sum_once(names):
    """W + Delta W is calculated in float32. A Delta W that is rounded to bfloat16 first gives other weights."""
    base = base_model(torch.bfloat16)
    model = get_peft_model(copy.deepcopy(base), static_config(), adapter_name="first")
    model.add_adapter("second", static_config())
    randomise(model, 0.3)
    expected, differs = {}, False
    for path in ("0", "2"):
        weight = base.get_submodule(path).weight.detach()
        rounded_early = weight
        for name in names:
            delta = mp.adapter_of(model, name).delta(path).detach()
            assert delta.dtype == torch.float32
            weight = (weight.float() + delta).bfloat16()
            rounded_early = rounded_early + delta.bfloat16()
        expected[path] = weight
        differs |= not torch.equal(weight, rounded_early)
    assert differs, "this example does not show an early rounding"
    model.merge_adapter(adapter_names=names)
    for path, weight in expected.items():
        layer = model.get_base_model().get_submodule(path)
        assert torch.equal(layer.base_layer.weight, weight)
    model.unmerge_adapter()
    for path in expected:
        layer = model.get_base_model().get_submodule(path)
        assert torch.equal(layer.base_layer.weight, base.get_submodule(path).weight)


def test_biases_of_merged_adapters_come_back_bit_for_bit():
    base = base_model(torch.float32)
    config = mp.CaRAConfig(r=2, target_modules=["0", "2"], head_dim=1)
    model = get_peft_model(copy.deepcopy(base), config, adapter_name="first")
    model.add_adapter("second", config)
    randomise(model)
    x = torch.randn(4, 5)
    model.base_model.set_adapter(["first", "second"])
    adapted = model(x)
    model.merge_adapter()
    layer = model.get_base_model()[0]
    assert (layer.base_layer.bias - base[0].bias).abs().max() > 1e-2
    torch.testing.assert_close(model(x), adapted, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(x), adapted)
    plain = model.unload()
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in plain.state_dict().items())


def test_a_merged_adapter_must_be_unmerged_before_it_is_deleted():
    model = get_peft_model(base_model(), static_config())
    randomise(model)
    model.merge_adapter()
    layer = model.get_base_model()[0]
    layer.adapter_layers.clear()
    with pytest.raises(ValueError, match="the merged adapters default were deleted.*unmerge before you delete"):
        layer.unmerge()


def test_a_deleted_adapter_is_in_no_dictionary_of_a_layer():
    """PEFT's own tests ask the same of its tuners: of public attributes, also of properties."""
    model = get_peft_model(base_model(), static_config())
    model.add_adapter("second", static_config())
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    dictionaries = [
        (name, getattr(layer, name))
        for layer in layers
        for name in dir(layer)
        if not name.startswith("_") and hasattr(getattr(layer, name, None), "keys")
    ]
    assert any("second" in dictionary for _, dictionary in dictionaries)
    model.delete_adapter("second")
    assert [name for name, dictionary in dictionaries if "second" in dictionary] == []


def test_a_condition_of_one_is_shared_by_all_rows():
    base = base_model()
    model = get_peft_model(copy.deepcopy(base), generated_config())
    randomise(model)
    model = mp.wrap(model).eval()
    condition = mp.adapter_of(model).condition(torch.randn(1, CONDITION_WIDTH))
    assert isinstance(condition, Condition) and len(condition) == 1
    x = torch.randn(3, 5, dtype=torch.float64)
    deltas = deltas_of(mp.adapter_of(model), condition)
    for arguments in ({}, {"adapter_names": ["default"] * 3}):
        output = model(x, condition=condition, **arguments)
        torch.testing.assert_close(output, torch.stack([expected_output(base, row, deltas) for row in x]))
