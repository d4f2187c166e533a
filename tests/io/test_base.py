"""Adapter files are bound to all of their base: its adapted weights, everything else, and the extractor."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, load, merge, save
from metalora.io.adapter_file import read
from metalora.io.base_samples import base_tensors
from support.adapters import randomise


def base():
    """Weights with more numbers than a sample, 8,100 and 4,140, a normalisation and a layer that is not adapted."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(90, 90), nn.BatchNorm1d(90), nn.Linear(90, 46), nn.Linear(46, 3)).eval()


def saved(tmp_path, prepare=lambda model: None, **config):
    """(base, path of the file of an adapter on a copy of it)."""
    plain = base()
    model = copy.deepcopy(plain)
    randomise(attach(model, AdapterConfig("lora", rank=2, targets=("0", "2"), **config)), 0.1)
    prepare(model)
    save(model, tmp_path / "adapter")
    return plain, tmp_path / "adapter"


def set_rows(tensor, start):
    tensor.data[start:] *= -1


CHANGES = {
    "the last 49 % of a weight": (lambda m: set_rows(m[0].weight, 46), "the base weights"),
    "the last row of a weight": (lambda m: set_rows(m[0].weight, 89), "the base weights"),
    "the last number of a weight": (lambda m: m[0].weight.data.flatten()[-1:].add_(1), "the base weights"),
    "the last row of a weight of little more than a sample": (lambda m: set_rows(m[2].weight, 45), "the base weights"),
    "the bias of an adapted layer": (lambda m: m[0].bias.data.add_(5), "other parameters"),
    "the weight of another layer": (lambda m: m[3].weight.data.normal_(), "other parameters"),
    "the bias of another layer": (lambda m: m[3].bias.data[-1:].add_(1), "other parameters"),
    "the statistics of a normalisation": (lambda m: m[1].running_var.mul_(2), "other parameters"),
    "a layer more": (lambda m: m.append(nn.Linear(3, 3)), "other parameters"),
    "a layer less": (lambda m: m.__delitem__(3), "other parameters"),
    "16 bits": (lambda m: m.half(), "the base weights"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_another_base_is_refused_and_nothing_changes(change, message, tmp_path):
    plain, path = saved(tmp_path)
    change(plain)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load(plain, path)
    assert str(error.value).startswith(f"{path}: {message}") and "check_base=False" in str(error.value)
    assert adapter_of(plain) is None and list(state) == list(plain.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert load(plain, path, check_base=False) is adapter_of(plain)


def count_batches(model):
    model[1].num_batches_tracked += 1


def merged(model):
    merge(model)


def trained_head(model):
    model[3].requires_grad_(True)
    model[3].weight.data.normal_()


SAME = {
    "a copy": (lambda m: None, lambda m: None, {}),
    "a counter of batches": (lambda m: None, count_batches, {}),
    "float64": (lambda m: None, lambda m: m.double(), {}),
    "saved while merged": (merged, lambda m: None, {}),
    "saved while merged, with biases": (merged, lambda m: None, {"bias": "adapted"}),
    "saved while merged, with all biases": (merged, lambda m: None, {"bias": "all"}),
    "a head that is trained by somebody else": (trained_head, lambda m: m[3].weight.data.zero_(), {}),
}


@pytest.mark.parametrize("prepare, change, config", SAME.values(), ids=SAME)
def test_the_same_base_is_taken(prepare, change, config, tmp_path):
    plain, path = saved(tmp_path, prepare, **config)
    change(plain)
    load(plain, path)


def test_another_architecture_is_refused_in_any_case(tmp_path):
    plain, path = saved(tmp_path)
    del plain[2]  # "2" is another layer now
    with pytest.raises(ValueError, match="target '2' has another shape"):
        load(plain, path, check_base=False)
    assert adapter_of(plain) is None


def test_a_head_that_is_a_part_of_the_model_and_in_the_file_is_no_part_of_the_base(tmp_path):
    plain = base()
    model = copy.deepcopy(plain)
    attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
    with torch.no_grad():
        model[3].weight.normal_()
    save(model, tmp_path / "adapter", extra_module=model[3])
    load(plain, tmp_path / "adapter", extra_module=plain[3])
    assert torch.equal(plain[3].weight, model[3].weight)
    assert read(tmp_path / "adapter")[0]["base"]["left_out"] == ["3.bias", "3.weight"]


def test_an_extractor_with_other_weights_is_refused(tmp_path):
    plain, extractor = base(), base()
    model, other = copy.deepcopy(plain), copy.deepcopy(extractor)
    with torch.no_grad():
        other[1].running_mean += 1
    condition = ConditionConfig(source="extractor", stages=("0",), hidden=5)
    config = AdapterConfig("metalora-cp", 2, targets="0", condition=condition)
    randomise(attach(model, config, example=torch.randn(2, 90), extractor=extractor))
    save(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="the weights of the extractor are not those"):
        load(plain, tmp_path / "adapter", extractor=other)
    assert adapter_of(plain) is None
    load(copy.deepcopy(plain), tmp_path / "adapter", extractor=other, check_base=False)
    load(plain, tmp_path / "adapter", extractor=extractor)


def test_an_adapted_model_has_the_tensors_of_its_base():
    plain = base()
    expected = {name: value for name, value in plain.state_dict().items() if "num_batches" not in name}
    attach(plain, AdapterConfig("dora", rank=2, targets=("0", "2"), bias="all"))
    tensors = dict(base_tensors(plain))
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
