"""A merged state is not taken for an unmerged one, and unmerging throws nothing away without being told to."""

import copy
import io
from collections import OrderedDict

import pytest
import torch
from torch import nn

import metalora
from metalora import AdapterConfig
from metalora.adapters.bit_hash import CHUNK, bit_hash
from metalora.io.merged_model import merged_state
from support.adapters import attach_random

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 2)).eval()


def adapted(seed=1):
    """(model, adapter) with changes of weights, of biases of targets, and of another bias."""
    model = network()
    torch.manual_seed(seed)
    return model, attach_random(model, AdapterConfig("lora", rank=2, targets=("0", "2"), bias="all"))


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def on_disk(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


CARRIED = {
    "as it is": lambda state: state,
    "through a file": on_disk,
    "as a plain dictionary": lambda state: {name: value.clone() for name, value in state.items()},
}
HOLDERS = {"the model": lambda model: model, "a part of another": lambda model: nn.Sequential(nn.Linear(2, 2), model)}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("carried", CARRIED.values(), ids=CARRIED)
@pytest.mark.parametrize("into_merged", [False, True])
def test_a_state_of_the_other_kind_is_refused_and_changes_nothing(into_merged, carried, holder):
    source, target = adapted(seed=1)[0], adapted(seed=2)[0]
    metalora.merge(target if into_merged else source)
    before = copy.deepcopy(target.state_dict())
    message = "the adapter is merged, and this is" if into_merged else "this is the state of a merged model"
    with pytest.raises(ValueError, match=f"^load_state_dict: {message}"):
        holder(target).load_state_dict(carried(holder(source).state_dict()))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("carried", CARRIED.values(), ids=CARRIED)
def test_a_state_of_the_same_kind_is_loaded(carried, merged):
    (source, _), (target, _) = adapted(seed=1), adapted(seed=2)
    for model in (source, target) if merged else ():
        metalora.merge(model)
    want = source(X)
    assert target.load_state_dict(carried(source.state_dict())).missing_keys == []
    assert torch.equal(target(X), want)


def test_the_factors_alone_are_loaded_whether_merged_or_not():
    source, adapter = adapted(seed=1)
    want = source(X)
    metalora.merge(source)
    target, other = adapted(seed=2)
    assert other.load_state_dict(adapter.state_dict()).unexpected_keys == []
    assert torch.equal(target(X), want)
    partial = OrderedDict((name, value) for name, value in target.state_dict().items() if ".adapter." in name)
    assert source.load_state_dict(partial, strict=False).unexpected_keys == []


def test_a_plain_merged_model_has_no_mark():
    assert set(merged_state(adapted()[0])) == set(network().state_dict())


@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy, pickled], ids=["itself", "copy", "pickle"])
def test_a_detached_model_loads_anything_again(copied):
    model = copied(adapted()[0])
    metalora.merge(model)
    state = model.state_dict()
    metalora.detach(model)
    model.load_state_dict(network().state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):  # torch's own error, of a hook that is gone
        model.load_state_dict(state)


# ---- unmerge --------------------------------------------------------------------------------------------------------
def trained(model):
    """One step on a weight of the merged base."""
    weight = model[2].base.weight.requires_grad_(True)
    model(X).square().sum().backward()
    torch.optim.SGD([weight], lr=0.1).step()


def trained_bias(model):
    with torch.no_grad():
        model[0].base.bias.add_(1e-3)


def trained_other_bias(model):
    with torch.no_grad():
        model[1].bias.mul_(1.5)


def one_number(model):
    model[0].base.weight.data[0, 0] += 1e-6  # `.data`: torch's version counter does not count it


def swapped_rows(model):
    weight = model[0].base.weight
    weight.data = weight.data.flip(0)


def loaded(model, **options):
    other = adapted(seed=2)[0]
    metalora.merge(other)
    model.load_state_dict(other.state_dict(), **options)


CHANGES = {
    "training": (trained, "target '2' was"),
    "training of a bias": (trained_bias, "target '0' was"),
    "training of another bias": (trained_other_bias, "the bias of '1'"),
    "one number": (one_number, "target '0' was"),
    "rows that change places": (swapped_rows, "target '0' was"),
    "another state": (loaded, r"target '0' \(and [2-9] more\)"),
    "another state, assigned": (lambda model: loaded(model, assign=True), r"target '0' \(and [2-9] more\)"),
    "another type": (lambda model: model.half(), r"target '0' \(and [2-9] more\)"),
}


@pytest.mark.parametrize("verb", [metalora.unmerge, metalora.detach])
@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_what_changed_after_the_merge_is_thrown_away_only_on_request(change, message, verb):
    model, adapter = adapted()
    metalora.merge(model)
    change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"^unmerge: {message}.*discard_changes=True"):
        verb(model)
    assert adapter.merged and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    adapter.unmerge(discard_changes=True)
    metalora.detach(model)
    for name, value in network().state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(model.state_dict()[name].dtype)), name


HARMLESS = {
    "nothing": lambda model: model,
    "a copy": copy.deepcopy,
    "a pickle": pickled,
    "the same state again": lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict())), model)[1],
    "another memory format": lambda model: model.to(memory_format=torch.channels_last),
    "other factors": lambda model: (nn.init.ones_(metalora.adapter_of(model).factors["0.B"]), model)[1],
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_leaves_the_merged_weights_alone_does_not_prevent_unmerging(change):
    model, _ = adapted()
    metalora.merge(model)
    model = change(model)
    metalora.detach(model)
    for name, value in network().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8])
def test_the_hash_sees_single_bits_and_places_and_no_memory_format(dtype):
    value = (torch.randn(2 * CHUNK // 64 + 3, 4, 4, 4) * 30).to(dtype)
    before = bit_hash(value)
    assert before == bit_hash(value.clone()) == bit_hash(value.to(memory_format=torch.channels_last))
    for place in (0, CHUNK - 1, CHUNK, value.numel() - 1):  # the ends of the chunks
        changed = value.clone()
        changed.view(-1)[place] += 1
        assert bit_hash(changed) != before
    first, second = value.view(-1)[0].clone(), value.view(-1)[CHUNK].clone()
    value.view(-1)[0], value.view(-1)[CHUNK] = second, first  # the same place in two chunks
    assert first == second or bit_hash(value) != before
