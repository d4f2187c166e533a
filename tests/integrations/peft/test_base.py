"""A folder of `metalora.peft` is bound to all of its base, and the conditions of its adapter to the adapter."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import metalora.peft as mp
from metalora import Condition, ConditionConfig

X = torch.arange(180.0).reshape(2, 90) / 90


def base(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(90, 90), nn.BatchNorm1d(90), nn.Linear(90, 8), nn.Linear(8, 3)).eval()


def saved(folder, config=mp.LoTRConfig, prepare=lambda model: None, **settings):
    model = get_peft_model(base(), config(r=2, target_modules=["0", "2"], init_weights=False, seed=1, **settings))
    prepare(model)
    model.save_pretrained(folder)
    return model.eval()


CHANGES = {
    "the last 49 % of a weight": (lambda m: m[0].weight.data[46:].neg_(), "the base weights"),
    "the bias of an adapted layer": (lambda m: m[0].bias.data.add_(5), "other parameters or buffers"),
    "the weight of another layer": (lambda m: m[3].weight.data.normal_(), "other parameters or buffers"),
    "the statistics of a normalisation": (lambda m: m[1].running_var.mul_(2), "other parameters or buffers"),
    "a layer more": (lambda m: m.append(nn.Linear(3, 3)), "other parameters or buffers"),
}


@pytest.mark.parametrize("next_to", (False, True), ids=("alone", "next to another adapter"))
@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_another_base_is_refused(change, message, next_to, tmp_path):
    saved(tmp_path)
    model = base()
    change(model)
    if next_to:
        model = get_peft_model(model, mp.LoTRConfig(r=2, target_modules=["2"]))
    with pytest.raises(ValueError) as error:
        mp.load(model, tmp_path, "second")
    assert str(error.value).startswith(f"{tmp_path}: {message}") and "check_base=False" in str(error.value)
    assert "second" not in getattr(model, "peft_config", {})
    assert isinstance(mp.load(model, tmp_path, "second", check_base=False), PeftModel)


def merge(model):
    model.merge_adapter()


HEAD = {"modules_to_save": ["3"]}
SAME = {
    "a copy": (lambda m: None, lambda m: None, {}),
    "saved while merged": (merge, lambda m: None, {}),
    "saved while merged, with biases": (merge, lambda m: None, {"bias": "lora_only"}),
    "a head in the file, another in the base": (lambda m: None, lambda m: m[3].weight.data.normal_(), HEAD),
}


@pytest.mark.parametrize("prepare, change, settings", SAME.values(), ids=SAME)
def test_the_same_base_is_taken(prepare, change, settings, tmp_path):
    model = saved(tmp_path, prepare=prepare, **settings)
    plain = base()
    change(plain)
    loaded = mp.load(plain, tmp_path).eval()
    model.unmerge_adapter()
    assert torch.equal(loaded(X), model(X))
    mp.load(loaded, tmp_path, "second")


def test_a_folder_that_does_not_name_its_base_is_refused(tmp_path):
    model = saved(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["placement"]
    path.write_text(json.dumps(config))
    plain = base()
    with pytest.raises(ValueError, match="does not say on which base the adapter was trained.*check_base=False"):
        mp.load(plain, tmp_path)
    assert not hasattr(plain, "peft_config") and not hasattr(plain, "tensor_bank")
    assert torch.equal(mp.load(plain, tmp_path, check_base=False).eval()(X), model(X))


def generated(folder, prepare=lambda model: None):
    condition = vars(ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5))
    return mp.wrap(saved(folder, mp.MetaLoRAConfig, prepare, condition=condition))


def test_a_condition_file_is_taken_by_its_adapter_and_by_no_other(tmp_path):
    model = generated(tmp_path / "adapter")
    condition = mp.adapter_of(model).condition(torch.randn(4, 5)).detach()
    condition.save(tmp_path / "condition")
    expected = model(X, condition=condition)
    loaded = Condition.load(tmp_path / "condition")
    for user in (model, copy.deepcopy(model), mp.load(base(), tmp_path / "adapter")):
        assert torch.equal(user.eval()(X, condition=loaded), expected)
    other = generated(tmp_path / "other", lambda m: mp.adapter_of(m).conditioner.mapping_net.head.bias.data.add_(1))
    with pytest.raises(ValueError, match=f"{tmp_path}/condition: the condition of another adapter"):
        other(X, condition=loaded)
    changed = base()
    changed[3].bias.data.add_(1)
    elsewhere = mp.load(changed, tmp_path / "adapter", check_base=False)
    with pytest.raises(ValueError, match=f"{tmp_path}/condition: other parameters or buffers of the base"):
        elsewhere(X, condition=loaded)
