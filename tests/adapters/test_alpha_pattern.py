"""`alpha_pattern`: the alpha of single targets, for methods with and without shared factors."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import metalora.peft as mp
from metalora import AdapterConfig, attach, load, save
from metalora.io.lora.convert import convert
from metalora.io.lora.import_ import read_any_lora

ALPHA, PATTERN = 4.0, {"1.query": 12.0, "value": 2.0}
FACTORS = {"0.query": 1.0, "0.value": 0.5, "1.query": 3.0, "1.value": 0.5}  # alpha of the target over ALPHA
METHODS = ("lora", "rslora", "metatt-4d", "lotr", "fact-tk", "vera", "tt-lora", "multi-lora")


def two_blocks():
    torch.manual_seed(0)
    return nn.ModuleList(nn.ModuleDict({"query": nn.Linear(16, 16), "value": nn.Linear(16, 16)}) for _ in range(2))


def run(model, x):
    """All layers, one after another."""
    for block in model:
        x = torch.tanh(block["value"](torch.tanh(block["query"](x))))
    return x


class Network(nn.Module):
    """The blocks as a model that PEFT can wrap."""

    def __init__(self):
        super().__init__()
        self.layers = two_blocks()

    def forward(self, x):
        return run(self.layers, x)


def filled(model, config):
    """An adapter whose factors all differ from zero."""
    adapter = attach(model, config)
    generator = torch.Generator().manual_seed(1)
    for factor in adapter.learned.values():
        factor.data = torch.randn(factor.shape, generator=generator) * 0.5
    return adapter


def config_of(method, **fields):
    return AdapterConfig(method, rank=4, alpha=ALPHA, targets=("query", "value"), **fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_has_its_own_scale_in_delta_forward_and_merge(method):
    plain = filled(Network(), config_of(method))
    model = Network()
    adapter = filled(model, config_of(method, alpha_pattern=PATTERN))
    oracle = Network()
    for path, factor in FACTORS.items():
        expected = plain.delta(f"layers.{path}") * factor
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(adapter.delta(f"layers.{path}"), expected)
        oracle.get_submodule(f"layers.{path}").weight.data += expected.detach()
    x = torch.randn(5, 16)
    torch.testing.assert_close(model(x), oracle(x))  # the forward folds several targets together
    adapter.merge()
    torch.testing.assert_close(model(x), oracle(x))


def test_a_start_from_the_weight_counts_the_scale_of_its_target():
    model = Network()
    adapter = attach(model, config_of("pissa", alpha_pattern=PATTERN))
    for path, factor in FACTORS.items():
        left, right = (adapter.factors[key] for key in (f"layers.{path}.A_0", f"layers.{path}.B_0"))
        u, s, v = torch.linalg.svd(model.get_submodule(f"layers.{path}").base.weight.detach().T)
        expected = u[:, :4] * s[:4] @ v[:4]
        torch.testing.assert_close(factor * ALPHA / 4 * left @ right, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_file_keeps_it(tmp_path):
    model = Network()
    adapter = filled(model, config_of("metatt-4d", alpha_pattern=PATTERN))
    save(model, tmp_path / "adapter")
    loaded = load(Network(), tmp_path / "adapter")
    assert loaded.config.alpha_pattern == PATTERN
    assert torch.equal(loaded.delta("layers.1.query"), adapter.delta("layers.1.query"))


def test_peft_computes_the_same_from_an_export(tmp_path):
    model, x = Network(), torch.randn(5, 16)
    adapter = filled(model, config_of("lora", alpha_pattern=PATTERN))
    adapter.export_lora(tmp_path / "lora")
    torch.testing.assert_close(PeftModel.from_pretrained(Network(), tmp_path / "lora")(x), model(x))


def test_a_lora_of_peft_with_an_alpha_pattern_is_read(tmp_path):
    from peft import LoraConfig

    settings = dict(r=4, lora_alpha=4, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(Network(), LoraConfig(**settings, alpha_pattern=PATTERN))
    model.save_pretrained(tmp_path)
    for path, update in read_any_lora(Network(), tmp_path).items():
        layer = model.get_submodule(f"base_model.model.{path}")
        torch.testing.assert_close(update.up @ update.down, layer.get_delta_weight("default"))


def test_the_tuner_of_peft_takes_patterns_as_peft_matches_them(tmp_path):
    config = mp.MetaTTConfig(r=4, alpha=ALPHA, target_modules=["query", "value"], alpha_pattern={r"1\..*": 12.0})
    model = get_peft_model(Network(), config)
    adapter = mp.adapter_of(model)
    assert {path: adapter.scale_of(path) for path in adapter.targets} == {
        f"layers.{path}": 12.0 if path.startswith("1") else ALPHA for path in FACTORS
    }
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["alpha_pattern"] == {r"1\..*": 12.0}
    assert mp.adapter_of(mp.load(Network(), tmp_path)).scale_of("layers.1.query") == 12.0


REFUSED = {
    "no alpha": (dict(alpha=None, alpha_pattern={"query": 2.0}), "alpha_pattern is set and alpha"),
    "zero": (dict(alpha=1.0, alpha_pattern={"query": 0.0}), "alpha of targets 'query' is 0"),
    "no target": (dict(alpha=1.0, alpha_pattern={"qery": 2.0}), "alpha_pattern 'qery' matches no target"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    fields, message = REFUSED[name]
    model = Network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, AdapterConfig("lora", rank=2, targets=("query",), **fields))
    assert model.state_dict().keys() == before.keys()


def test_a_fit_refuses_scales_that_differ():
    update = {"layers.0.query": (torch.ones(1, 16), torch.ones(16, 1))}
    config = AdapterConfig("lora", rank=1, alpha=1.0, alpha_pattern={"query": 2.0})
    with pytest.raises(ValueError, match="fit: .* alpha_pattern, give targets scales of their own"):
        convert(Network(), [update], config)
