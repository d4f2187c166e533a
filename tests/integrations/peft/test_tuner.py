"""The tuner under PEFT's own interface: files, several adapters, merging, mixed batches, refusals."""

import copy
import json
import pickle

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

import metalora
import metalora.peft as mp
from metalora.config import AdapterConfig
from support.fresh_process import run_fresh

IDS = torch.arange(3 * 7).reshape(3, 7) % 50


def bert(layers=3, kind=BertModel, **more):
    torch.manual_seed(1)
    config = BertConfig(hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64, **more)
    config.vocab_size = 64
    return kind(config).eval()


def output(model, **more):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, **more)[0]


def trained(model):
    """Draw every adapter's factors at random, in place of training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "metalora_" in name:
                parameter.normal_(0, 0.6)
    return model


CONFIGS = {
    "metatt": lambda: mp.MetaTTConfig(r=4, target_modules=["query", "value"]),
    "lotr": lambda: mp.LoTRConfig(r=4, target_modules=["query", "dense"], exclude_modules=["pooler.dense"], alpha=2.0),
    "cara": lambda: mp.CaRAConfig(r=2, target_modules=["query", "key", "value", "output.dense"], alpha=0.3),
    "tenslora": lambda: mp.TensLoRAConfig(r=3, target_modules=["query", "key"]),
    "lorta": lambda: mp.LoRTAConfig(r=4, target_modules=["query", "value"]),
    "metalora": lambda: mp.MetaLoRAConfig(r=2, target_modules=["query"], condition={"scope": "constant"}),
    "generated": lambda: mp.MetaLoRAConfig(method="metalora-tr", r=2, target_modules=["query"]),
    "vera": lambda: mp.TensorNetworkConfig(method="vera", r=4, target_modules=["query", "value"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_attach_of_the_library_itself(name):
    config = CONFIGS[name]()
    config.seed = 5
    model = trained(get_peft_model(bert(), config))
    peft_adapter = mp.adapter_of(model)
    base = bert()
    fields = {**vars(peft_adapter.config), "targets": tuple(peft_adapter.targets)}
    adapter = metalora.attach(base, AdapterConfig(**fields))
    adapter.load_state_dict(peft_adapter.state_dict())
    torch.testing.assert_close(output(model), output(base), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(model), output(bert()), atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_files_hold_each_factor_once_and_load_bit_equal(name, low_cpu_mem_usage, tmp_path):
    model = trained(get_peft_model(bert(), CONFIGS[name]()))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    adapter = mp.adapter_of(model)
    saved_names = adapter.state_dict()
    saved_buffers = [buffer for buffer_name, buffer in adapter.named_buffers() if buffer_name in saved_names]
    numbers_in_file = sum(tensor.numel() for tensor in tensors.values())
    assert numbers_in_file == adapter.num_params() + sum(buffer.numel() for buffer in saved_buffers)
    loaded = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(output(loaded), output(model))
    assert "metalora.peft.load" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "METALORA"


def test_entries_do_not_depend_on_the_depth():
    def entries(layers):
        model = get_peft_model(bert(layers), mp.MetaTTConfig(r=2, target_modules=["query", "value"]))
        return [name for name in model.state_dict() if "metalora_" in name]

    assert entries(2) == entries(5) and len(entries(2)) == 4


def test_minilm_checkpoint_is_below_40_kb(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=100)
    model = get_peft_model(BertModel(BertConfig(**sizes)), mp.MetaTTConfig(r=8, target_modules=["query", "value"]))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 40_000
    assert mp.adapter_of(model).num_params() == 6656


def test_several_methods_on_one_model_switch_mix_and_go():
    model = trained(get_peft_model(bert(), CONFIGS["metatt"](), adapter_name="tt"))
    model.add_adapter("lotr", CONFIGS["lotr"]())
    model.add_adapter("generated", CONFIGS["generated"]())
    trained(model)
    expected = {"__base__": output(bert())}
    for name in ("tt", "lotr", "generated"):
        model.set_adapter(name)
        expected[name] = output(model)
        trained_names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained_names and all(f"metalora_adapters.{name}." in key for key in trained_names)
    for names in (["tt", "lotr", "__base__"], ["generated", "tt", "generated"]):
        mixed = output(model, adapter_names=names)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], expected[name][row], rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(output(model), expected["__base__"])
    model.delete_adapter("tt")
    assert not any(".tt." in name for name in model.state_dict())
    model.set_adapter("lotr")
    assert torch.equal(output(model), expected["lotr"])
    with pytest.raises(ValueError, match="non-existing adapter"):
        model(input_ids=IDS, adapter_names=["tt", "lotr", "lotr"])
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        model(input_ids=IDS, adapter_names=["lotr"])


def test_two_active_adapters_add_up():
    model = trained(get_peft_model(bert(1), CONFIGS["metatt"](), adapter_name="first"))
    model.add_adapter("second", CONFIGS["lotr"]())
    trained(model)
    model.base_model.set_adapter(["first", "second"])
    got = output(model)
    plain = bert(1)
    for adapter in (mp.adapter_of(model, name) for name in ("first", "second")):
        for path in adapter.layers:
            plain.get_submodule(path).weight.data += adapter.delta(path)
    torch.testing.assert_close(got, output(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["metatt", "lotr", "metalora"])
def test_merge_unmerge_and_unload(name):
    base = bert()
    weights = copy.deepcopy(base.state_dict())
    model = trained(get_peft_model(base, CONFIGS[name]()))
    expected = output(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(output(model), expected)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(output(merged), expected, rtol=1e-4, atol=1e-5)
    assert set(merged.state_dict()) == set(weights)
    plain = model.unload()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in weights.items())
    assert not plain._forward_pre_hooks and not plain._forward_hooks


def test_safe_merge_refuses_what_is_not_finite_and_changes_nothing():
    model = trained(get_peft_model(bert(), CONFIGS["metatt"]()))
    before = model.get_base_model().encoder.layer[0].attention.self.query.base_layer.weight.clone()
    mp.adapter_of(model).learned["G1"].data[0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected in the merged weights. The adapter default"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.get_base_model().encoder.layer[0].attention.self.query.base_layer.weight, before)


def test_a_generated_adapter_merges_for_a_fixed_condition():
    model = trained(get_peft_model(bert(), CONFIGS["generated"]()))
    with pytest.raises(ValueError, match=r"adapter 'default' takes C from a condition; fix one"):
        model.merge_adapter()
    adapter = mp.adapter_of(model)
    adapter.fix(adapter.condition({"input_ids": IDS}).mean())
    expected = output(model)
    torch.testing.assert_close(output(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_modules_to_save_and_layers_to_transform(tmp_path):
    config = mp.MetaTTConfig(
        r=2, target_modules=["query", "value"], layers_to_transform=[1, 2], layers_pattern="layer", task_type="SEQ_CLS",
        modules_to_save=["classifier"], clip_rank=True,
    )  # fmt: skip
    model = trained(get_peft_model(bert(kind=BertForSequenceClassification, num_labels=2), config))
    targets = mp.adapter_of(model).targets
    assert {path.split(".")[3] for path in targets} == {"1", "2"} and len(targets) == 4
    model.base_model.model.classifier.modules_to_save["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(kind=BertForSequenceClassification, num_labels=2), tmp_path)
    assert torch.equal(output(loaded), output(model))


def test_targets_outside_of_the_numbered_layers_have_a_layer_of_their_own():
    model = get_peft_model(bert(), mp.MetaTTConfig(r=2, target_modules="all-linear"))
    places = mp.adapter_of(model).layout.targets
    assert places["pooler.dense"].coords["layer"] == 0
    assert places["encoder.layer.0.attention.self.query"].coords["layer"] == 1


def test_rank_pattern_where_targets_share_nothing_and_nowhere_else():
    config = mp.TensorNetworkConfig(r=4, alpha=8.0, target_modules=["query", "value"], rank_pattern={r"1\..*query": 2})
    model = trained(get_peft_model(bert(), config))
    adapter = mp.adapter_of(model)
    assert {path: layer.form.rank for path, layer in adapter.layers.items() if layer.form.rank != 4} == {
        "encoder.layer.1.attention.self.query": 2
    }
    path = "encoder.layer.1.attention.self.query"
    a, b = adapter.factors[f"{path}.A"], adapter.factors[f"{path}.B"]
    torch.testing.assert_close(adapter.delta(path), 8 / 2 * (a @ b).mT)
    with pytest.raises(ValueError, match="rank_pattern gives .* unequal ranks, and they have factors in common"):
        get_peft_model(bert(), mp.MetaTTConfig(r=4, target_modules=["query"], rank_pattern={"1.*query": 2}))


def test_swept_factors_reload(tmp_path):
    model = trained(get_peft_model(bert(), CONFIGS["metatt"]()))
    metalora.sweep(model, rank=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(bert(), tmp_path)), output(model))


def test_exports_as_plain_lora(tmp_path):
    model = trained(get_peft_model(bert(), CONFIGS["lotr"]()))
    mp.adapter_of(model).export_lora(tmp_path / "lora")
    plain = PeftModel.from_pretrained(bert(), tmp_path / "lora")
    torch.testing.assert_close(output(plain), output(model), rtol=1e-4, atol=1e-4)


def test_copies_are_independent():
    model = trained(get_peft_model(bert(), CONFIGS["generated"]()))
    expected = output(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(other), expected)
        mp.adapter_of(other).learned["encoder.layer.0.attention.self.query.A"].data.zero_()
        assert not torch.equal(output(other), expected) and torch.equal(output(model), expected)


def test_a_sequential_base_is_not_changed_by_calling_the_container():
    base = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = get_peft_model(copy.deepcopy(base), mp.LoTRConfig(r=2, target_modules=["0", "2"]))
    x = torch.rand(5, 4)
    torch.testing.assert_close(model(x), base(x))


@pytest.mark.skipif(not hasattr(peft.utils, "resolve_quantization_backend"), reason="transformers asks for PEFT 0.20")
def test_transformers_own_adapters(tmp_path):
    def gpt():
        torch.manual_seed(1)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16)).eval()

    model = gpt()
    model.add_adapter(mp.MetaTTConfig(r=2, target_modules=["c_attn"]), "mine")
    expected = output(trained(model))
    model.save_pretrained(tmp_path)
    other = gpt()
    other.load_adapter(tmp_path, "other")
    assert torch.equal(output(other), expected) and not torch.equal(output(gpt()), expected)
    other.disable_adapters()
    assert torch.equal(output(other), output(gpt()))


REFUSALS = {
    "unknown method": (lambda: mp.MetaTTConfig(method="metatt-4"), "'metatt-4'; did you mean 'metatt-4d'"),
    "another family's": (lambda: mp.LoTRConfig(method="lora"), "LoTRConfig: method 'lora'; did you mean 'lotr'"),
    "wrong type": (lambda: mp.MetaTTConfig(alpha="x"), "MetaTTConfig.alpha: expected float"),
    "unknown condition": (lambda: mp.MetaLoRAConfig(condition={"scop": 1}), "unknown key 'scop'; did you mean 'scope'"),
    "rank": (lambda: mp.MetaTTConfig(r=99, target_modules=["query"]), "rank 99 of bond 'r1' is above 32"),
    "layers_pattern": (lambda: mp.MetaTTConfig(layers_pattern="layer"), "set both"),
    "module": (lambda: mp.MetaTTConfig(target_modules=["attention"]), "0.attention' is not supported: BertAttention"),
    "no such": (lambda: mp.MetaTTConfig(target_modules=["q"]), "not found in the base model"),
    "tasks": (lambda: mp.MetaTTConfig(target_modules=["query"], tasks=3), "it has no task mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_thing_and_change_nothing(case):
    config, message = REFUSALS[case]
    model = bert()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config())
    assert names == [name for name, _ in model.named_modules()] and not model._forward_pre_hooks


def test_contractions_are_planned_once_for_targets_that_are_alike():
    adapter = mp.adapter_of(get_peft_model(bert(16), mp.MetaTTConfig(r=4, target_modules="all-linear")))
    assert len(adapter.layers) == 97 and len({id(layer.form) for layer in adapter.layers.values()}) == 3


def test_the_library_itself_imports_neither_peft_nor_transformers():
    code = "import metalora, metalora.adapters.attach, sys; assert not {'peft', 'transformers'} & set(sys.modules)"
    done = run_fresh(code)
    assert done.returncode == 0, done.stderr


class EightBit(nn.Linear):
    """Stands for a layer of a quantisation library: the weight is whole numbers that carry their scale."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.bias, self.weight = layer.bias, packed(layer.weight.data)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.weight.scale, self.bias)


def packed(weight):
    scale = weight.abs().max() / 127
    parameter = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
    parameter.scale = scale
    return parameter


class EightBitBackend:
    def get_base_weight(self, base):
        return base.weight * base.weight.scale

    def set_base_weight(self, layer, weight):
        layer.get_base_layer().weight = packed(weight)


def test_quantised_layers_go_through_peft_s_backend(monkeypatch):
    def resolve(base, **kwargs):
        return EightBitBackend() if isinstance(base, EightBit) else None

    for module in (metalora.integrations.peft.layers, metalora.integrations.peft.target_resolution):
        monkeypatch.setattr(module, "resolve_quantization_backend", resolve)
    quantised = bert()
    for layer in quantised.encoder.layer:
        layer.attention.self.query = EightBit(layer.attention.self.query)
    expected = output(quantised)
    model = get_peft_model(quantised, mp.LoTRConfig(r=4, target_modules=["query"]))
    assert torch.equal(output(model), expected)
    trained(model)
    assert {p.dtype for n, p in model.named_parameters() if "metalora_" in n} == {torch.float32}
    adapted = output(model)
    layer = model.get_base_model().encoder.layer[0].attention.self.query
    quantised_weight = layer.base_layer.weight
    delta = mp.adapter_of(model).delta("encoder.layer.0.attention.self.query")
    base_weight = EightBitBackend().get_base_weight(layer.base_layer)
    model.merge_adapter(safe_merge=True)
    assert layer.base_layer.weight.dtype == torch.int8
    half_a_step = float(layer.base_layer.weight.scale) * 0.501
    merged_weight = EightBitBackend().get_base_weight(layer.base_layer)
    torch.testing.assert_close(merged_weight, base_weight + delta, rtol=0, atol=half_a_step)
    model.unmerge_adapter()
    assert layer.base_layer.weight is quantised_weight and torch.equal(output(model), adapted)


def test_a_merge_into_a_tied_weight_is_refused_and_changes_nothing():
    base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50, n_positions=8))
    model = trained(get_peft_model(base, mp.TensorNetworkConfig(r=2, target_modules=["c_attn", "wte"])))
    before = output(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the weight of target 'transformer.wte' is tied to another module's"):
        model.merge_adapter()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(output(model), before)
