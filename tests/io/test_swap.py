"""Another trained adapter in the place of an attached one: its Delta W exactly, the same parameters, or no change."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import metalora
from metalora import AdapterConfig, load_lora
from metalora.config import ConditionConfig
from support.unchanged import unchanged

X = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).eval()


def peft_lora(folder, **options):
    """The outputs of a LoRA that PEFT has saved."""
    torch.manual_seed(2)
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["0", "2"], "init_lora_weights": False} | options)
    model = get_peft_model(net(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.rand_like(parameter))
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(net(), folder).eval()(X).detach()


def attached(method="lora", **options):
    model = net()
    adapter = metalora.attach(model, AdapterConfig(method, **{"rank": 3, "targets": ("0", "2")} | options))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return model, adapter


LORAS = {
    "the same layout": ({"r": 3}, "lora", {}),
    "a smaller rank": ({"rank_pattern": {"0": 1}}, "lora", {}),
    "fewer targets": ({"target_modules": ["2"]}, "lora", {}),
    "an adapter with a scale": ({}, "lora", {"alpha": 7.0}),
    "rsLoRA": ({"use_rslora": True}, "rslora", {"alpha": 2.0}),
    "DoRA": ({"use_dora": True}, "dora", {}),
}


@pytest.mark.parametrize("case", LORAS)
def test_a_lora_of_peft_in_the_place_of_an_adapter(case, tmp_path):
    theirs, method, options = LORAS[case]
    want = peft_lora(tmp_path, **theirs)
    model, adapter = attached(method, **options)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    adapter.swap(tmp_path)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


METHODS = {
    "lora": {},
    "vera": {},
    "task-lora": {"tasks": 2},
    "metalora-cp": {"condition": ConditionConfig(source="tensor", feature_size=4, hidden=5)},
}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_file_of_any_method(method, tmp_path):
    torch.manual_seed(3)
    model, adapter = attached(method, **METHODS[method])
    adapter.save(tmp_path / "file")
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in wanted.items())
    adapter.swap(tmp_path / "file")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in wanted.items())


def file_of(*arguments, **options):
    def make(folder):
        _, adapter = attached(*arguments, **options)
        adapter.save(folder / "file")
        return folder / "file"

    return make


def folder_of(**options):
    def make(folder):
        peft_lora(folder, **options)
        return folder

    return make


REFUSED = {
    "another rank": (file_of(rank=2), "lora", "rank is 2, that of the attached adapter is 3"),
    "another alpha": (file_of(alpha=2.0), "lora", "alpha is 2.0, that of the attached adapter is None"),
    "another method": (file_of("vera"), "lora", "method is 'vera', that of the attached adapter is 'lora'"),
    "other targets": (file_of(targets=("0",)), "lora", "target '2' is in the attached adapter alone"),
    "a larger rank": (folder_of(r=4), "lora", "'0' has rank 4, above the 3 of the attached adapter"),
    "a DoRA": (folder_of(use_dora=True), "lora", "the LoRA is a dora, and the attached adapter is a lora"),
    "a LoRA for a DoRA": (folder_of(), "dora", "the LoRA is a lora, and the attached adapter is a dora"),
    "a LoRA for another method": (folder_of(), "vera", "a LoRA, and the attached adapter is a vera"),
    "a DoRA of one target": (folder_of(use_dora=True, target_modules=["0"]), "dora", "no magnitude for '2'"),
    "nothing": (lambda folder: folder / "nothing", "lora", "no such file or folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(case, tmp_path):
    make, method, message = REFUSED[case]
    path = make(tmp_path)
    model, adapter = attached(method)
    with unchanged(model), pytest.raises(ValueError, match=message):
        adapter.swap(path)


def test_another_base_is_refused_unless_nobody_asks(tmp_path):
    path = file_of()(tmp_path)
    model = net()
    model[0].weight.data.add_(1)
    adapter = metalora.attach(model, AdapterConfig("lora", rank=3, targets=("0", "2")))
    with unchanged(model), pytest.raises(ValueError, match="fingerprints differ"):
        adapter.swap(path)
    adapter.swap(path, check_base=False)
    assert adapter.factors["0.B"].abs().max() > 0


def test_a_merged_or_a_fixed_adapter_is_refused(tmp_path):
    path = file_of()(tmp_path)
    _, adapter = attached()
    adapter.merge()
    with pytest.raises(ValueError, match="swap: the adapter is merged"):
        adapter.swap(path)
    _, adapter = attached("metalora-cp", condition=METHODS["metalora-cp"]["condition"])
    adapter.fix(adapter.condition(torch.rand(1, 4)))
    with pytest.raises(ValueError, match="swap: the adapter is fixed"):
        adapter.swap(path)


def test_one_after_another_as_each_alone(tmp_path):
    wants = {name: peft_lora(tmp_path / name, lora_alpha=alpha) for name, alpha in (("a", 3), ("b", 9))}
    model = net()
    adapter = load_lora(model, tmp_path / "a")
    for name in ("b", "a", "b"):
        adapter.swap(tmp_path / name)
        torch.testing.assert_close(model(X), wants[name], rtol=1e-5, atol=1e-5)
